// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/handlers.hpp"

namespace migrationd::control {

QmpResult<Empty> SettingsHandlers::set_capabilities(std::span<const qmp::MigrationCapabilityStatus> changes) {
  auto& service = state_.service;
  qmp::CapabilityContext context;
  context.incoming_started = service.incoming_started();
  // A destination that waits may still be told about capabilities; some have rules for that case.
  context.migration_in_progress = service.in_progress() && !context.incoming_started;
  auto wanted = qmp::apply(service.capabilities(), changes, service.parameters(), context);
  if (!wanted) return wanted.error();
  if (auto replaced = service.replace_capabilities(*wanted); !replaced) return qmp::QmpError(replaced.error());
  return Empty{};
}

QmpResult<std::vector<qmp::MigrationCapabilityStatus>> SettingsHandlers::handle(cmd::QueryMigrateCapabilities,
                                                                                const Empty&, Request&) {
  return qmp::list(state_.service.capabilities());
}

QmpResult<Empty> SettingsHandlers::handle(cmd::MigrateSetCapabilities, const qmp::SetCapabilitiesArgs& args, Request&) {
  return set_capabilities(args.capabilities);
}

QmpResult<Empty> SettingsHandlers::handle(cmd::MigrateSetCapability, const qmp::MigrationCapabilityStatus& args,
                                          Request&) {
  return set_capabilities({&args, 1});
}

QmpResult<qmp::MigrationParameters> SettingsHandlers::handle(cmd::QueryMigrateParameters, const Empty&, Request&) {
  return state_.service.parameters();
}

QmpResult<Empty> SettingsHandlers::handle(cmd::MigrateSetParameters, const qmp::ParameterPatch& args, Request&) {
  auto& service = state_.service;
  auto wanted = qmp::apply(service.parameters(), args, service.capabilities());
  if (!wanted) return wanted.error();
  service.replace_parameters(*wanted);
  return Empty{};
}

QmpResult<Empty> SettingsHandlers::handle(cmd::MigrateSetParameter, const qmp::SetParameterArgs& args,
                                          Request& request) {
  auto patch = qmp::parse_parameter(args.parameter, args.value.value);
  if (!patch) return patch.error();
  return handle(cmd::MigrateSetParameters{}, *patch, request);
}

}  // namespace migrationd::control
