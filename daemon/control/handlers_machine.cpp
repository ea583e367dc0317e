// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/handlers.hpp"

namespace migrationd::control {
QmpResult<qmp::MachineInfo> IdentityHandlers::handle(cmd::QueryMachine, const Empty&, Request&) {
  auto found = state_.service.query_machine();
  if (!found) return qmp::QmpError(found.error());
  return std::move(*found);
}

}  // namespace migrationd::control
