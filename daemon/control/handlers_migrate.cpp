// SPDX-License-Identifier: Apache-2.0
//
// Order of checks in migrate and migrate-incoming (qmp.md 9.2): the arguments (decoding), the address, then whatever
// the service checks: transport against capabilities, state, machine.
#include "daemon/control/channel_address.hpp"
#include "daemon/control/handlers.hpp"

namespace migrationd::control {
namespace {

qmp::QmpError instance_not_found() { return qmp::QmpError("Instance not found", qmp::ErrorClass::device_not_found); }

}  // namespace

QmpResult<Empty> MigrateHandlers::handle(cmd::Migrate, const qmp::MigrateArgs& args, Request& request) {
  auto addresses = channel_addresses(args.uri, args.channels, Direction::outgoing);
  if (!addresses) return addresses.error();
  return reply(state_.service.migrate(addresses->main, addresses->cpr, args.resume.value_or(false), request.fds));
}

QmpResult<Empty> MigrateHandlers::handle(cmd::MigrateIncoming, const qmp::MigrateIncomingArgs& args, Request& request) {
  auto addresses = channel_addresses(args.uri, args.channels, Direction::incoming);
  if (!addresses) return addresses.error();
  // Only an explicit true ends the process on failure (docs/architecture.md, section 12, decision 7).
  return reply(state_.service.migrate_incoming(addresses->main, args.exit_on_error.value_or(false), request.fds));
}

QmpResult<Empty> MigrateHandlers::handle(cmd::MigrateCancel, const Empty&, Request&) {
  return reply(state_.service.cancel());
}

QmpResult<Empty> MigrateHandlers::handle(cmd::MigrateContinue, const qmp::MigrateContinueArgs& args, Request&) {
  return reply(state_.service.continue_from(args.state));
}

QmpResult<Empty> MigrateHandlers::handle(cmd::MigrateStartPostcopy, const Empty&, Request&) {
  return reply(state_.service.start_postcopy());
}

QmpResult<Empty> MigrateHandlers::handle(cmd::MigratePause, const Empty&, Request&) {
  return reply(state_.service.pause_migration());
}

QmpResult<Empty> MigrateHandlers::handle(cmd::MigrateRecover, const qmp::MigrateRecoverArgs& args, Request& request) {
  auto addresses = channel_addresses(args.uri, std::nullopt, Direction::incoming);
  if (!addresses) return addresses.error();
  return reply(state_.service.recover(addresses->main, request.fds));
}

QmpResult<qmp::MigrationInfo> MigrateHandlers::handle(cmd::QueryMigrate, const Empty&, Request&) {
  return state_.service.info();
}

QmpResult<std::vector<qmp::MigrationThreadInfo>> MigrateHandlers::handle(cmd::QueryMigrationThreads, const Empty&,
                                                                         Request&) {
  std::vector<qmp::MigrationThreadInfo> threads;
  for (auto& thread : state_.service.threads()) threads.push_back({std::move(thread.name), thread.id});
  return threads;
}

// All instances are looked up before any is broken.
QmpResult<Empty> MigrateHandlers::handle(cmd::Yank, const qmp::YankArgs& args, Request&) {
  for (const auto& instance : args.instances) {
    if (instance.type != qmp::YankInstanceType::migration || !state_.service.in_progress()) {
      return instance_not_found();
    }
  }
  if (args.instances.empty()) return Empty{};
  return reply(state_.service.yank());
}

QmpResult<std::vector<qmp::YankInstance>> MigrateHandlers::handle(cmd::QueryYank, const Empty&, Request&) {
  std::vector<qmp::YankInstance> instances;
  if (state_.service.in_progress()) instances.emplace_back();
  return instances;
}

QmpResult<Empty> MigrateHandlers::handle(cmd::CalcDirtyRate, const qmp::CalcDirtyRateArgs& args, Request&) {
  return state_.dirty_rate.start(args);
}

QmpResult<qmp::DirtyRateInfo> MigrateHandlers::handle(cmd::QueryDirtyRate, const qmp::QueryDirtyRateArgs& args,
                                                      Request&) {
  return state_.dirty_rate.query(args);
}

}  // namespace migrationd::control
