// SPDX-License-Identifier: Apache-2.0
//
// What all command handlers work on: one ControlState per process, and the small Request that says for whom a command
// runs. Handlers hold no state of their own.
//
// Thread: control.
#pragma once

#include "daemon/control/dirty_rate.hpp"
#include "daemon/control/event_bus.hpp"
#include "daemon/control/fd_registry.hpp"
#include "daemon/migration/service.hpp"
#include "protocol/qmp/machine_types.hpp"
#include "protocol/qmp/types.hpp"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::control {

// Replaces this daemon; `done` is called once, later, on control.
using UpdateDone = std::function<void(const Result<qmp::UpdateInfo>&)>;
using UpdateFunction = std::function<void(const qmp::UpdateArgs&, UpdateDone)>;

// Given on the command line.
struct ControlOptions {
  qmp::VersionInfo version;         // greeting and query-version
  std::optional<std::string> name;  // query-name
  std::optional<std::string> uuid;  // query-uuid; all zero if unset
  UpdateFunction update = {};       // __org.migrationd_update; empty: refused
};

struct ControlState {
  ControlState(EventBus& bus, migration::MigrationService& migration_service, ControlOptions given)
      : events(bus), service(migration_service), options(std::move(given)), dirty_rate(migration_service) {}

  EventBus& events;
  migration::MigrationService& service;
  ControlOptions options;
  FdSets fd_sets;
  DirtyRate dirty_rate;
  // Set by `quit`: no further command is started, and the server ends when the reply is out.
  bool quitting = false;
};

struct Request {
  FdRegistry& fds;                // of the socket the client came by
  std::vector<UniqueFd>& passed;  // the client's pending batch of descriptors (qmp.md 7)

  // The first descriptor of the batch; the rest is closed.
  Result<UniqueFd> claim_fd();
};

}  // namespace migrationd::control
