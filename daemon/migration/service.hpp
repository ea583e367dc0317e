// SPDX-License-Identifier: Apache-2.0
//
// MigrationService: the one machine of this process and its migrations, as the control socket sees them.
//
// The handlers of daemon/control decode a command, call one member and turn its Result into a reply. Everything
// here runs on the control thread and returns at once: a migration is started here and carried out by its mover
// thread, which reports back through the event loop. Error texts are QEMU 10.0's where it has the case (qmp.md 9).
//
// Events (STOP, RESUME, MIGRATION, MIGRATION_PASS) go to the EventSink, synchronously when a member call causes
// them, so that they precede the command's reply (qmp.md 4).
#pragma once

#include "base/result.hpp"
#include "protocol/qmp/machine_types.hpp"
#include "protocol/qmp/migration_info.hpp"
#include "protocol/qmp/parameters.hpp"
#include "transports/address.hpp"
#include "transports/fd_source.hpp"

#include <nlohmann/json.hpp>

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::migration {

// Implemented by daemon/control's event bus. Control thread.
class EventSink {
 public:
  virtual ~EventSink() = default;
  virtual void stop() = 0;
  virtual void resume() = 0;
  // Called only while the capability `events` is on.
  virtual void migration(qmp::MigrationStatus status) = 0;
  virtual void migration_pass(std::uint64_t pass) = 0;
};

class MigrationService {
 public:
  virtual ~MigrationService() = default;

  // --- settings: checked by protocol/qmp/parameters before they come here ---------------------------------
  virtual const qmp::Capabilities& capabilities() const = 0;
  virtual const qmp::MigrationParameters& parameters() const = 0;
  // Refuses while an outgoing migration runs: "There's a migration process in progress". An incoming one has its plan
  // already and is not changed.
  virtual Result<void> replace_capabilities(const qmp::Capabilities& capabilities) = 0;
  // At any time; bandwidths, downtime-limit and the throttle's take effect at once.
  virtual void replace_parameters(const qmp::MigrationParameters& parameters) = 0;
  // Listening or loading: "Multifd must be set before incoming starts" and such are checked with it.
  virtual bool incoming_started() const = 0;

  // --- migrations -----------------------------------------------------------------------------------------
  // Transport checks (file-and-channels.md section 6) are made inside both, before any state change.
  // `cpr`: the second channel, which only the mode cpr-transfer uses.
  virtual Result<void> migrate(const transports::Address& address, const std::optional<transports::Address>& cpr,
                               bool resume, transports::FdSource& fds) = 0;
  // exit_on_error: only when the client said true; absent means false here (docs/architecture.md, section 12,
  // decision 7).
  virtual Result<void> migrate_incoming(const transports::Address& address, bool exit_on_error,
                                        transports::FdSource& fds) = 0;
  virtual Result<void> cancel() = 0;
  virtual Result<void> continue_from(qmp::MigrationStatus state) = 0;
  virtual Result<void> start_postcopy() = 0;
  virtual Result<void> pause_migration() = 0;
  virtual Result<void> recover(const transports::Address& address, transports::FdSource& fds) = 0;
  // True between setup and the end of an outgoing or incoming migration: query-yank, yank.
  virtual bool in_progress() const = 0;
  // Breaks the channels of the running migration; an error when there is none ("Instance not found").
  virtual Result<void> yank() = 0;
  virtual qmp::MigrationInfo info() const = 0;
  // Names and kernel thread ids of the running migration's threads.
  struct Thread {
    std::string name;
    std::int64_t id;
  };
  virtual std::vector<Thread> threads() const = 0;

  // --- run state ------------------------------------------------------------------------------------------
  virtual qmp::RunState run_state() const = 0;
  virtual Result<void> stop() = 0;
  virtual Result<void> cont() = 0;

  // --- the machine ----------------------------------------------------------------------------------------
  // Kind, origin, blocks, sizes, devices, and whose the machine is (__org.migrationd_query-machine).
  virtual Result<qmp::MachineInfo> query_machine() const = 0;
  // Stops the guest for the check if it runs, on a thread of its own; `done` is called on the control thread.
  virtual void verify_machine(std::function<void(Result<nlohmann::json>)> done) = 0;
  // Pages written per second over `period` by a machine that can tell; `done` on the control thread.
  virtual void measure_dirty_rate(std::chrono::milliseconds period,
                                  std::function<void(Result<std::uint64_t>)> done) = 0;
};

}  // namespace migrationd::migration
