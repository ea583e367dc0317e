// SPDX-License-Identifier: Apache-2.0
//
// Blockers: reasons of the running program that forbid its migration, per mode of migration
// (docs/formats/vmstate.md, "What forbids migration"). Devices that can never be migrated are not here: their
// description says so.
//
// Thread: belongs to its DeviceSet's.
#pragma once

#include "base/result.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace migrationd::vmstate {

enum class MigrationMode : std::uint8_t { normal, cpr_reboot, cpr_transfer };

// A set of modes.
class Modes {
 public:
  constexpr Modes() = default;
  constexpr Modes(MigrationMode mode)
      : bits_(1U << static_cast<unsigned>(mode)) {}  // NOLINT(google-explicit-constructor)
  static constexpr Modes all() {
    return Modes(MigrationMode::normal) | MigrationMode::cpr_reboot | MigrationMode::cpr_transfer;
  }
  constexpr bool has(MigrationMode mode) const { return (bits_ >> static_cast<unsigned>(mode) & 1U) != 0; }
  friend constexpr Modes operator|(Modes a, Modes b) {
    a.bits_ |= b.bits_;
    return a;
  }

 private:
  unsigned bits_ = 0;
};

class Blockers {
 public:
  enum class Id : std::uint64_t {};

  // Errors (ErrorKind::machine): a migration or snapshot runs, or only what can be migrated is wanted and `modes` has
  // the normal one. `reason` is the text that migrate then fails with.
  Result<Id> add(std::string reason, Modes modes = Modes::all());
  // Short-lived ones of the program's own, which only_migratable() does not forbid.
  Result<Id> add_internal(std::string reason, Modes modes = Modes::all());
  void remove(Id id);

  // A migration or snapshot runs: nothing can be added.
  void set_busy(bool busy) noexcept { busy_ = busy; }
  void set_only_migratable(bool only) noexcept { only_migratable_ = only; }
  bool only_migratable() const noexcept { return only_migratable_; }

  // Those of the mode, the oldest first.
  std::vector<std::string> reasons(MigrationMode mode) const;
  // The newest of the mode, if there is one.
  Result<void> refusal(MigrationMode mode) const;

 private:
  struct Blocker {
    Id id{};
    std::string reason;
    Modes modes;
  };

  std::vector<Blocker> blockers_;
  std::uint64_t next_ = 1;
  bool busy_ = false;
  bool only_migratable_ = false;
};

}  // namespace migrationd::vmstate
