// SPDX-License-Identifier: Apache-2.0
//
// human-monitor-command: the human monitor's lines, carried out by the QMP handlers (qmp.md 12). Parsing and printing
// are protocol/qmp/hmp's.
//
// Thread: control.
#pragma once

#include "daemon/control/handlers.hpp"
#include "protocol/qmp/hmp.hpp"

namespace migrationd::control {

class Dispatcher;

class MonitorHandlers : public HandlerFamily {
 public:
  MonitorHandlers(ControlState& state, Dispatcher& dispatcher) : HandlerFamily(state), dispatcher_(dispatcher) {}
  QmpResult<std::string> handle(cmd::HumanMonitorCommand, const qmp::HumanMonitorArgs& args, Request& request);

 private:
  std::string info(qmp::HmpInfo what, Request& request);

  Dispatcher& dispatcher_;
};

}  // namespace migrationd::control
