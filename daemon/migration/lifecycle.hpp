// SPDX-License-Identifier: Apache-2.0
//
// Lifecycle: the status of a migration as QMP names it, and which change is possible when. Pure; control's thread.
//
//   none ─ start ─> setup ─> active ─> [pre-switchover] ─> device ─> completed
//                     │        │             │               │
//                     └────────┴─────────────┴───────────────┴──> failed
//                     └── cancel ──> cancelling ──> cancelled (or failed, or completed: the cancel came too late)
//
// The mover proposes statuses; while cancelling only an end is taken from it, so that a client that asked for the end
// never sees `active` again. Ends are reached once: what comes after is ignored.
#pragma once

#include "protocol/qmp/migration_info.hpp"

#include <optional>

namespace migrationd::migration {

class Lifecycle {
 public:
  using Status = qmp::MigrationStatus;

  Status status() const noexcept { return status_; }
  // Between start and an end.
  bool in_progress() const noexcept;
  static bool is_end(Status status) noexcept;

  // Only when not in progress.
  void start() noexcept { status_ = Status::setup; }
  // True: the status is cancelling now and the stop is to be raised. False: nothing runs, or it is cancelling already.
  bool cancel() noexcept;
  // What the mover says. True when it became the status, and MIGRATION is to be emitted.
  bool propose(Status status) noexcept;

 private:
  Status status_ = Status::none;
};

}  // namespace migrationd::migration
