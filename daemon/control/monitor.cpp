// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/monitor.hpp"

#include "daemon/control/dispatcher.hpp"

namespace migrationd::control {
namespace {

// A text could mean a value or an error's text, so the result has to be told.
QmpResult<std::string> printed(std::string text) { return {boost::system::in_place_value, std::move(text)}; }

}  // namespace

QmpResult<std::string> MonitorHandlers::handle(cmd::HumanMonitorCommand, const qmp::HumanMonitorArgs& args,
                                               Request& request) {
  // There are no vCPUs, so no number names one.
  if (args.cpu_index) return qmp::QmpError("Parameter 'cpu-index' expects a CPU number");
  const auto plan = qmp::parse_hmp(args.command_line);
  if (const auto* text = std::get_if<qmp::HmpText>(&plan)) return printed(text->text);
  if (const auto* what = std::get_if<qmp::HmpInfo>(&plan)) return printed(info(*what, request));
  const auto& command = std::get<qmp::HmpCommand>(plan);
  const auto result = dispatcher_.run_now(*command.command, command.arguments, request);
  if (result) return printed(qmp::hmp_outcome(command, nullptr));
  const auto error = result.error();
  return printed(qmp::hmp_outcome(command, &error));
}

std::string MonitorHandlers::info(qmp::HmpInfo what, Request& request) {
  IdentityHandlers identity(state_);
  switch (what) {
    case qmp::HmpInfo::migrate:
      return qmp::hmp_info_migrate(state_.service.info());
    case qmp::HmpInfo::migrate_capabilities:
      return qmp::hmp_info_capabilities(state_.service.capabilities());
    case qmp::HmpInfo::migrate_parameters:
      return qmp::hmp_info_parameters(state_.service.parameters());
    case qmp::HmpInfo::status:
      return qmp::hmp_info_status(*RunStateHandlers(state_).handle(cmd::QueryStatus{}, Empty{}, request));
    case qmp::HmpInfo::version:
      return qmp::hmp_info_version(state_.options.version);
    case qmp::HmpInfo::name:
      return qmp::hmp_info_name(*identity.handle(cmd::QueryName{}, Empty{}, request));
    case qmp::HmpInfo::uuid:
      return qmp::hmp_info_uuid(*identity.handle(cmd::QueryUuid{}, Empty{}, request));
  }
  return "";
}

}  // namespace migrationd::control
