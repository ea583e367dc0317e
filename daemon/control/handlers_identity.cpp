// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/handlers.hpp"

namespace migrationd::control {

QmpResult<qmp::VersionInfo> IdentityHandlers::handle(cmd::QueryVersion, const Empty&, Request&) {
  return state_.options.version;
}

QmpResult<qmp::Prebuilt<std::vector<qmp::CommandName>>> IdentityHandlers::handle(cmd::QueryCommands, const Empty&,
                                                                                 Request&) {
  return qmp::query_commands();
}

QmpResult<qmp::Prebuilt<std::vector<qmp::SchemaInfo>>> IdentityHandlers::handle(cmd::QueryQmpSchema, const Empty&,
                                                                                Request&) {
  return qmp::query_qmp_schema();
}

QmpResult<qmp::NameInfo> IdentityHandlers::handle(cmd::QueryName, const Empty&, Request&) {
  return qmp::NameInfo{state_.options.name};
}

QmpResult<qmp::UuidInfo> IdentityHandlers::handle(cmd::QueryUuid, const Empty&, Request&) {
  qmp::UuidInfo info;
  if (state_.options.uuid) info.uuid = *state_.options.uuid;
  return info;
}

// Nothing here is run by KVM, and this program cannot use it.
QmpResult<qmp::KvmInfo> IdentityHandlers::handle(cmd::QueryKvm, const Empty&, Request&) { return qmp::KvmInfo{}; }

QmpResult<qmp::TargetInfo> IdentityHandlers::handle(cmd::QueryTarget, const Empty&, Request&) {
  return qmp::TargetInfo{};
}

QmpResult<qmp::CurrentMachineParams> IdentityHandlers::handle(cmd::QueryCurrentMachine, const Empty&, Request&) {
  return qmp::CurrentMachineParams{};
}

}  // namespace migrationd::control
