// SPDX-License-Identifier: Apache-2.0
//
// Dispatcher: runs one command with all its handlers. The only source file that instantiates the decoders is
// dispatcher.cpp.
//
// Thread: control.
#pragma once

#include "daemon/control/control_state.hpp"
#include "protocol/qmp/commands.hpp"

#include <functional>

namespace migrationd::control {

class Dispatcher {
 public:
  using Done = std::function<void(const qmp::QmpResult<qmp::OrderedJson>&)>;

  explicit Dispatcher(ControlState& state) : state_(state) {}

  // Calls `done` once: before it returns, or later from the event loop for commands that work on another thread.
  void run(const qmp::CommandInfo& command, const qmp::Json& arguments, Request& request, const Done& done);
  // For the human monitor: a command that answers at once.
  qmp::QmpResult<qmp::OrderedJson> run_now(const qmp::CommandInfo& command, const qmp::Json& arguments,
                                           Request& request);

 private:
  void verify(const qmp::Json& arguments, const Done& done);
  void update(const qmp::Json& arguments, const Done& done);

  ControlState& state_;
};

}  // namespace migrationd::control
