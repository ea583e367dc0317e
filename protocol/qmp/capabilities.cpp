// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/capabilities.hpp"

#include "protocol/qmp/parameters.hpp"

#include <fmt/format.h>

#include <array>

namespace migrationd::qmp {

namespace {

using C = Capability;

// What a capability needs before it may say true here: the code that does it, and its tests.
constexpr std::array<CapabilityRow, capability_count> all_capabilities{{
    {C::xbzrle, true, "send changes of pages instead of pages"},
    {C::rdma_pin_all, true, "register all memory before an RDMA migration"},
    {C::auto_converge, true, "slow the guest down when it dirties faster than can be sent"},
    {C::zero_blocks, false, "deprecated; no effect in QEMU either"},
    {C::events, true, "MIGRATION and MIGRATION_PASS events"},
    {C::postcopy_ram, true, "let the destination run before all pages are there"},
    {C::x_colo, false, "lock-step replication"},
    {C::release_ram, false, "free pages on the source once sent"},
    {C::return_path, true, "the destination answers on the same connection"},
    {C::pause_before_switchover, true, "wait in pre-switchover for migrate-continue"},
    {C::multifd, true, "pages over several connections"},
    {C::dirty_bitmaps, false, "migrate the block layer's dirty bitmaps"},
    {C::postcopy_blocktime, true, "measure how long postcopy faults block"},
    {C::late_block_activate, true, "block devices are activated by cont; there are none"},
    {C::x_ignore_shared, true, "leave memory in files that have names out of the stream"},
    {C::validate_uuid, true, "source and destination must have the same UUID"},
    {C::background_snapshot, false, "save while the guest runs, as of the start"},
    {C::zero_copy_send, true, "send without copying into the kernel"},
    {C::postcopy_preempt, true, "urgent pages on a connection of their own"},
    {C::switchover_ack, true, "the destination agrees before the source stops"},
    {C::dirty_limit, false, "limit the dirtying per vCPU (KVM's dirty ring)"},
    {C::mapped_ram, true, "each page at a fixed place in the file"},
    {C::skip_holes, true, "leave memory that was never touched out of the stream; to be on at both ends"},
    {C::instant_resume, true,
     "migrate: the destination runs before any page is sent; migrate-incoming from a file: its pages stay there"},
}};

constexpr bool in_enum_order() {
  for (std::size_t i = 0; i < all_capabilities.size(); ++i)
    if (all_capabilities[i].capability != static_cast<C>(i)) return false;
  return true;
}
static_assert(in_enum_order());

bool is_available(Capability capability) { return all_capabilities[static_cast<std::size_t>(capability)].available; }

constexpr std::array background_snapshot_excludes{C::postcopy_ram,
                                                  C::dirty_bitmaps,
                                                  C::postcopy_blocktime,
                                                  C::late_block_activate,
                                                  C::return_path,
                                                  C::multifd,
                                                  C::pause_before_switchover,
                                                  C::auto_converge,
                                                  C::release_ram,
                                                  C::rdma_pin_all,
                                                  C::xbzrle,
                                                  C::x_colo,
                                                  C::validate_uuid,
                                                  C::zero_copy_send};

QmpResult<> check_postcopy(const Capabilities& wanted) {
  if (!wanted.has(C::postcopy_ram)) return {};
  if (wanted.has(C::x_ignore_shared)) return QmpError("Postcopy is not compatible with ignore-shared");
  if (wanted.has(C::multifd)) return QmpError("Postcopy is not yet compatible with multifd");
  return {};
}

QmpResult<> check_background_snapshot(const Capabilities& wanted) {
  if (!wanted.has(C::background_snapshot)) return {};
  for (const auto other : background_snapshot_excludes)
    if (wanted.has(other))
      return QmpError(fmt::format("Background-snapshot is not compatible with {}", to_name(other)));
  return {};
}

QmpResult<> check_zero_copy(const Capabilities& wanted, const MigrationParameters& parameters) {
  if (!wanted.has(C::zero_copy_send)) return {};
  const bool plain = parameters.multifd_compression == MultifdCompression::none && parameters.tls_creds.empty();
  if (wanted.has(C::multifd) && !wanted.has(C::xbzrle) && plain) return {};
  return QmpError("Zero copy only available for non-compressed non-TLS multifd migration");
}

QmpResult<> check_preempt(const Capabilities& before, const Capabilities& wanted, const CapabilityContext& context) {
  if (!wanted.has(C::postcopy_preempt)) return {};
  if (!wanted.has(C::postcopy_ram)) return QmpError("Postcopy preempt requires postcopy-ram");
  if (!before.has(C::postcopy_preempt) && context.incoming_started)
    return QmpError("Postcopy preempt must be set before incoming starts");
  return {};
}

QmpResult<> check_pairs(const Capabilities& wanted) {
  if (wanted.has(C::switchover_ack) && !wanted.has(C::return_path))
    return QmpError("Capability 'switchover-ack' requires capability 'return-path'");
  if (wanted.has(C::dirty_limit)) {
    if (wanted.has(C::auto_converge))
      return QmpError("dirty-limit conflicts with auto-converge either of then available currently");
    return QmpError("dirty-limit requires KVM with accelerator property 'dirty-ring-size' set");
  }
  if (wanted.has(C::multifd) && wanted.has(C::xbzrle)) return QmpError("Multifd is not compatible with xbzrle");
  if (wanted.has(C::mapped_ram)) {
    if (wanted.has(C::xbzrle)) return QmpError("Mapped-ram migration is incompatible with xbzrle");
    if (wanted.has(C::postcopy_ram)) return QmpError("Mapped-ram migration is incompatible with postcopy");
  }
  return {};
}

}  // namespace

std::span<const CapabilityRow> capability_table() { return all_capabilities; }

QmpResult<> check_combination(const Capabilities& before, const Capabilities& wanted,
                              const MigrationParameters& parameters, const CapabilityContext& context) {
  MD_CHECK(check_postcopy(wanted));
  MD_CHECK(check_background_snapshot(wanted));
  MD_CHECK(check_zero_copy(wanted, parameters));
  MD_CHECK(check_preempt(before, wanted, context));
  if (wanted.has(C::multifd) && !before.has(C::multifd) && context.incoming_started)
    return QmpError("Multifd must be set before incoming starts");
  return check_pairs(wanted);
}

QmpResult<Capabilities> apply(const Capabilities& current, std::span<const MigrationCapabilityStatus> changes,
                              const MigrationParameters& parameters, const CapabilityContext& context) {
  if (context.migration_in_progress) return QmpError("There's a migration process in progress");
  Capabilities wanted = current;
  for (const auto& change : changes) wanted.set(change.capability, change.state);
  MD_CHECK(check_combination(current, wanted, parameters, context));
  // After QEMU's rules, so that a contradiction is told as QEMU tells it.
  for (const auto& row : all_capabilities)
    if (wanted.has(row.capability) && !is_available(row.capability))
      return QmpError(fmt::format("Capability '{}' is not available in this build", to_name(row.capability)));
  return wanted;
}

std::vector<MigrationCapabilityStatus> list(const Capabilities& capabilities) {
  std::vector<MigrationCapabilityStatus> out;
  for (const auto& row : all_capabilities) out.push_back({row.capability, capabilities.has(row.capability)});
  return out;
}

}  // namespace migrationd::qmp
