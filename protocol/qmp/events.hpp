// SPDX-License-Identifier: Apache-2.0
//
// Events (qmp.md 6): one type per event, with its data members; encode_event() makes the line's JSON.
//
//   bus.broadcast(encode_event(event::Migration{MigrationStatus::active}, now));
//
// Which events are sent when is the sender's matter: MIGRATION and MIGRATION_PASS only with capability `events`.
#pragma once

#include "protocol/qmp/migration_info.hpp"
#include "protocol/qmp/schema.hpp"

#include <chrono>

namespace migrationd::qmp {

namespace event {

struct Migration {
  MigrationStatus status = MigrationStatus::none;
  static constexpr std::string_view name = "MIGRATION";
  static constexpr std::string_view text = "the migration entered a state (only with capability `events`)";
  static constexpr std::string_view type_name = "MIGRATION-arg";
  static constexpr auto members() { return std::make_tuple(req("status", &Migration::status)); }
};

struct MigrationPass {
  std::int64_t pass = 0;  // from 1
  static constexpr std::string_view name = "MIGRATION_PASS";
  static constexpr std::string_view text = "a pass over memory begins (only with capability `events`)";
  static constexpr std::string_view type_name = "MIGRATION_PASS-arg";
  static constexpr auto members() { return std::make_tuple(req("pass", &MigrationPass::pass)); }
};

struct Stop : Empty {
  static constexpr std::string_view name = "STOP";
  static constexpr std::string_view text = "the machine has stopped";
};

struct Resume : Empty {
  static constexpr std::string_view name = "RESUME";
  static constexpr std::string_view text = "the machine runs";
};

struct Shutdown {
  bool guest = false;
  ShutdownCause reason = ShutdownCause::none;
  static constexpr std::string_view name = "SHUTDOWN";
  static constexpr std::string_view text = "the daemon is about to end";
  static constexpr std::string_view type_name = "SHUTDOWN-arg";
  static constexpr auto members() {
    return std::make_tuple(req("guest", &Shutdown::guest), req("reason", &Shutdown::reason));
  }
};

struct Reset {
  bool guest = false;
  ShutdownCause reason = ShutdownCause::none;
  static constexpr std::string_view name = "RESET";
  static constexpr std::string_view text = "the machine was reset";
  static constexpr std::string_view type_name = "RESET-arg";
  static constexpr auto members() {
    return std::make_tuple(req("guest", &Reset::guest), req("reason", &Reset::reason));
  }
};

struct Powerdown : Empty {
  static constexpr std::string_view name = "POWERDOWN";
  static constexpr std::string_view text = "the guest was asked to switch itself off";
};

}  // namespace event

template <class... Rows>
struct EventTable {};
using AllEvents = EventTable<event::Migration, event::MigrationPass, event::Stop, event::Resume, event::Shutdown,
                             event::Reset, event::Powerdown>;

// {"timestamp": {...}, "event": NAME, "data": {...}}; `data` is left out when there are no members. Defined for the
// rows of AllEvents.
template <class E>
OrderedJson encode_event(const E& event, std::chrono::system_clock::time_point when);

}  // namespace migrationd::qmp
