// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/handlers.hpp"

namespace migrationd::control {
namespace {

// A machine in migrationd's hands has no reset line and no power button: its devices are bytes, or its own threads.
// Success here would let a client wait for ever for what cannot happen.
qmp::QmpError no_such_button(std::string_view command) {
  return qmp::QmpError(std::string(command) + ": the machine is held by migrationd, which does not run its devices");
}

}  // namespace

QmpResult<qmp::StatusInfo> RunStateHandlers::handle(cmd::QueryStatus, const Empty&, Request&) {
  const auto state = state_.service.run_state();
  return qmp::StatusInfo{state == qmp::RunState::running, state};
}

QmpResult<Empty> RunStateHandlers::handle(cmd::Stop, const Empty&, Request&) { return reply(state_.service.stop()); }

QmpResult<Empty> RunStateHandlers::handle(cmd::Cont, const Empty&, Request&) { return reply(state_.service.cont()); }

QmpResult<Empty> RunStateHandlers::handle(cmd::Quit, const Empty&, Request&) {
  state_.quitting = true;
  state_.events.shutdown(qmp::ShutdownCause::host_qmp_quit);
  return Empty{};
}

QmpResult<Empty> RunStateHandlers::handle(cmd::SystemReset, const Empty&, Request&) {
  return no_such_button(cmd::SystemReset::name);
}

QmpResult<Empty> RunStateHandlers::handle(cmd::SystemPowerdown, const Empty&, Request&) {
  return no_such_button(cmd::SystemPowerdown::name);
}

QmpResult<Empty> RunStateHandlers::handle(cmd::SystemWakeup, const Empty&, Request&) {
  return qmp::QmpError("wake-up from suspend is not supported by this guest");
}

}  // namespace migrationd::control
