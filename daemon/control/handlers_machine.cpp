// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/handlers.hpp"

namespace migrationd::control {
namespace {

using qmp::MachineOwner;

MachineOwner owner_named(std::string_view name) {
  if (name == "ours") return MachineOwner::here;
  if (name == "handed-over") return MachineOwner::moved;
  if (name == "unknown") return MachineOwner::unknown;
  return MachineOwner::none;
}

}  // namespace

QmpResult<qmp::MachineInfo> IdentityHandlers::handle(cmd::QueryMachine, const Empty&, Request&) {
  const auto found = state_.service.query_machine();
  if (!found) return qmp::QmpError(found.error());
  const auto& machine = *found;
  qmp::MachineInfo info;
  info.kind = machine.value("kind", "none");
  info.owner = owner_named(machine.value("owner", ""));
  if (const auto peer = machine.value("peer", std::string()); !peer.empty()) info.origin = peer;
  if (machine.contains("machine-type")) info.machine_type = machine.value("machine-type", "");
  if (const auto log = machine.value("dirty-log", std::string("none")); log != "none") info.dirty_log = log;
  for (const auto& block : machine.value("blocks", nlohmann::json::array())) {
    auto& row = info.blocks.emplace_back();
    row.name = block.value("name", "");
    row.size = block.value("size", std::uint64_t{0});
    row.page_size = block.value("page-size", std::uint64_t{0});
    if (block.contains("allocated")) row.allocated = block.value("allocated", std::uint64_t{0});
    info.ram_total += row.size;
  }
  for (const auto& device : machine.value("devices", nlohmann::json::array())) {
    auto& row = info.devices.emplace_back();
    row.name = device.value("name", "");
    row.instance_id = device.value("instance-id", std::int64_t{0});
    row.version = device.value("version-id", std::int64_t{0});
    row.size = device.value("size", std::uint64_t{0});
  }
  return info;
}

}  // namespace migrationd::control
