// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/dispatcher.hpp"

#include "daemon/control/handlers.hpp"
#include "daemon/control/monitor.hpp"
#include "protocol/qmp/parameter_codec.hpp"
//
#include "protocol/qmp/dispatch.hpp"

namespace migrationd::control {
namespace {

using Reply = QmpResult<qmp::OrderedJson>;

// The whole table's handlers.
class Handlers : public SettingsHandlers,
                 public MigrateHandlers,
                 public FdHandlers,
                 public RunStateHandlers,
                 public IdentityHandlers,
                 public DeviceHandlers,
                 public MonitorHandlers {
 public:
  Handlers(ControlState& state, Dispatcher& dispatcher)
      : SettingsHandlers(state),
        MigrateHandlers(state),
        FdHandlers(state),
        RunStateHandlers(state),
        IdentityHandlers(state),
        DeviceHandlers(state),
        MonitorHandlers(state, dispatcher) {}

  using DeviceHandlers::handle;
  using FdHandlers::handle;
  using IdentityHandlers::handle;
  using MigrateHandlers::handle;
  using MonitorHandlers::handle;
  using RunStateHandlers::handle;
  using SettingsHandlers::handle;

  // Answered later by Dispatcher::run; the row must have a handler all the same.
  QmpResult<qmp::Any> handle(cmd::VerifyMachine, const Empty&, Request&) {
    return qmp::QmpError("verify-machine cannot be answered at once");
  }
  QmpResult<qmp::UpdateInfo> handle(cmd::Update, const qmp::UpdateArgs&, Request&) {
    return qmp::QmpError("update cannot be answered at once");
  }
};

}  // namespace

void Dispatcher::run(const qmp::CommandInfo& command, const qmp::Json& arguments, Request& request, const Done& done) {
  if (command.name == cmd::VerifyMachine::name) return verify(arguments, done);
  if (command.name == cmd::Update::name) return update(arguments, done);
  done(run_now(command, arguments, request));
}

void Dispatcher::verify(const qmp::Json& arguments, const Done& done) {
  if (const auto none = qmp::decode<Empty>(arguments); !none) return done(none.error());
  state_.service.verify_machine([done](const Result<nlohmann::json>& found) {
    done(found ? Reply(qmp::encode(qmp::Any{*found})) : Reply(qmp::QmpError(found.error())));
  });
}

void Dispatcher::update(const qmp::Json& arguments, const Done& done) {
  const auto wanted = qmp::decode<qmp::UpdateArgs>(arguments);
  if (!wanted) return done(wanted.error());
  if (!state_.options.update) return done(qmp::QmpError("this daemon cannot be updated"));
  state_.options.update(*wanted, [done](const Result<qmp::UpdateInfo>& updated) {
    done(updated ? Reply(qmp::encode(*updated)) : Reply(qmp::QmpError(updated.error())));
  });
}

Reply Dispatcher::run_now(const qmp::CommandInfo& command, const qmp::Json& arguments, Request& request) {
  Handlers handlers(state_, *this);
  return qmp::dispatch(handlers, command, arguments, request);
}

}  // namespace migrationd::control
