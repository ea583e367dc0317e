// SPDX-License-Identifier: Apache-2.0
//
// Migration capabilities: the table, the set, and the rules for changing it (qmp.md 10.1).
//
// All capabilities of QEMU 10.0 are known by name, all are off at first and stay as set over migrations. Those this
// build does not implement are refused when switched on, by name; switching one off always succeeds. Names that QEMU
// does not have carry the downstream prefix and stand behind QEMU's own in every list.
//
// Thread: pure functions of values.
#pragma once

#include "protocol/qmp/schema.hpp"

#include <bitset>
#include <span>

namespace migrationd::qmp {

enum class Capability : std::uint8_t {
  xbzrle,
  rdma_pin_all,
  auto_converge,
  zero_blocks,
  events,
  postcopy_ram,
  x_colo,
  release_ram,
  return_path,
  pause_before_switchover,
  multifd,
  dirty_bitmaps,
  postcopy_blocktime,
  late_block_activate,
  x_ignore_shared,
  validate_uuid,
  background_snapshot,
  zero_copy_send,
  postcopy_preempt,
  switchover_ack,
  dirty_limit,
  mapped_ram,
  skip_holes,     // ours: memory never touched is left out of the stream; to be on at both ends
  instant_resume  // ours: postcopy before the first page; a file that is opened stays where it is
};
template <>
inline constexpr auto name_table<Capability> = names_up_to(Capability::instant_resume, "MigrationCapability",
                                                           {"xbzrle",
                                                            "rdma-pin-all",
                                                            "auto-converge",
                                                            {"zero-blocks", Stability::deprecated},
                                                            "events",
                                                            "postcopy-ram",
                                                            {"x-colo", Stability::unstable},
                                                            "release-ram",
                                                            "return-path",
                                                            "pause-before-switchover",
                                                            "multifd",
                                                            "dirty-bitmaps",
                                                            "postcopy-blocktime",
                                                            "late-block-activate",
                                                            {"x-ignore-shared", Stability::unstable},
                                                            "validate-uuid",
                                                            "background-snapshot",
                                                            "zero-copy-send",
                                                            "postcopy-preempt",
                                                            "switchover-ack",
                                                            "dirty-limit",
                                                            "mapped-ram",
                                                            "__org.migrationd_skip-holes",
                                                            "__org.migrationd_instant-resume"});

inline constexpr std::size_t capability_count = enum_size<Capability>;

// One row per capability, in the order of the enum.
struct CapabilityRow {
  Capability capability;
  bool available;         // in this build; otherwise switching it on is refused
  std::string_view text;  // for people
};
std::span<const CapabilityRow> capability_table();

class Capabilities {
 public:
  bool has(Capability capability) const noexcept { return bits_.test(static_cast<std::size_t>(capability)); }
  void set(Capability capability, bool state = true) noexcept {
    bits_.set(static_cast<std::size_t>(capability), state);
  }
  bool operator==(const Capabilities&) const = default;

 private:
  std::bitset<capability_count> bits_;
};

struct MigrationCapabilityStatus {
  Capability capability = Capability::xbzrle;
  bool state = false;

  static constexpr std::string_view type_name = "MigrationCapabilityStatus";
  static constexpr auto members() {
    return std::make_tuple(req("capability", &MigrationCapabilityStatus::capability),
                           req("state", &MigrationCapabilityStatus::state));
  }
};

struct MigrationParameters;

// What the rules need to know besides the set itself.
struct CapabilityContext {
  bool migration_in_progress = false;  // setup ... postcopy-paused, cancelling: nothing may change
  bool incoming_started = false;       // multifd and postcopy-preempt must have been chosen before
};

// The set after `changes` (a later entry for a name wins), or QEMU's refusal; all or nothing.
QmpResult<Capabilities> apply(const Capabilities& current, std::span<const MigrationCapabilityStatus> changes,
                              const MigrationParameters& parameters, const CapabilityContext& context);

// The combination rules alone, in QEMU's order; `before` tells what is newly switched on.
QmpResult<> check_combination(const Capabilities& before, const Capabilities& wanted,
                              const MigrationParameters& parameters, const CapabilityContext& context);

// query-migrate-capabilities: every capability, QEMU's order, ours behind.
std::vector<MigrationCapabilityStatus> list(const Capabilities& capabilities);

}  // namespace migrationd::qmp
