// SPDX-License-Identifier: Apache-2.0
//
// The object tree of a machine without devices, as one table; and the empty lists that belong to it. Paths, property
// lists and error texts as QEMU shows them for `-M none` without devices.
#include "daemon/control/handlers.hpp"

#include <fmt/format.h>

#include <array>
#include <optional>
#include <span>

namespace migrationd::control {
namespace {

struct Child {
  std::string_view name;
  std::string_view type;  // of the object behind it
};

struct Object {
  std::string_view path;
  std::string_view type;
  std::span<const Child> children;
};

constexpr std::string_view container = "container";
constexpr std::string_view machine_type = "migrationd-machine";
constexpr std::array root_children{Child{"backend", container}, Child{"machine", machine_type},
                                   Child{"objects", container}, Child{"chardevs", container}};
constexpr std::array machine_children{Child{"peripheral", container}, Child{"peripheral-anon", container},
                                      Child{"unattached", container}};

constexpr std::array<Object, 8> objects{{{"/", container, root_children},
                                         {"/backend", container, {}},
                                         {"/objects", container, {}},
                                         {"/chardevs", container, {}},
                                         {"/machine", machine_type, machine_children},
                                         {"/machine/peripheral", container, {}},
                                         {"/machine/peripheral-anon", container, {}},
                                         {"/machine/unattached", container, {}}}};

// "//machine/peripheral/" means "/machine/peripheral".
std::string normal_path(std::string_view path) {
  std::string normal;
  for (std::size_t at = 0; at < path.size();) {
    const auto end = std::min(path.find('/', at), path.size());
    if (end > at) normal.append("/").append(path.substr(at, end - at));
    at = end + 1;
  }
  return normal.empty() ? "/" : normal;
}

// An absolute path names one object; a relative one any object whose path ends so, and must not be ambiguous.
QmpResult<const Object*> find_object(std::string_view path) {
  const bool absolute = path.starts_with('/');
  const auto wanted = normal_path(path);
  const Object* found = nullptr;
  for (const auto& object : objects) {
    const bool matches = object.path == wanted || (!absolute && (path.empty() || object.path.ends_with(wanted)));
    if (!matches) continue;
    if (found != nullptr) return qmp::QmpError(fmt::format("Path '{}' is ambiguous", path));
    found = &object;
  }
  if (found == nullptr) {
    return qmp::QmpError(fmt::format("Device '{}' not found", path), qmp::ErrorClass::device_not_found);
  }
  return found;
}

}  // namespace

QmpResult<qmp::NoBlockDevices> DeviceHandlers::handle(cmd::QueryBlock, const Empty&, Request&) {
  return qmp::NoBlockDevices{};
}

QmpResult<qmp::NoBlockNodes> DeviceHandlers::handle(cmd::QueryNamedBlockNodes, const qmp::QueryNamedBlockNodesArgs&,
                                                    Request&) {
  return qmp::NoBlockNodes{};
}

QmpResult<Empty> DeviceHandlers::handle(cmd::BlockdevSetActive, const qmp::BlockdevSetActiveArgs& args, Request&) {
  if (args.node_name) return qmp::QmpError(fmt::format("Failed to find node with node-name='{}'", *args.node_name));
  return Empty{};
}

QmpResult<std::vector<qmp::ChardevInfo>> DeviceHandlers::handle(cmd::QueryChardev, const Empty&, Request&) {
  return std::vector<qmp::ChardevInfo>{};
}

QmpResult<std::vector<qmp::IoThreadInfo>> DeviceHandlers::handle(cmd::QueryIothreads, const Empty&, Request&) {
  return std::vector<qmp::IoThreadInfo>{};
}

QmpResult<std::vector<qmp::HotpluggableCpu>> DeviceHandlers::handle(cmd::QueryHotpluggableCpus, const Empty&,
                                                                    Request&) {
  return std::vector<qmp::HotpluggableCpu>{};
}

QmpResult<std::vector<qmp::CpuInfoFast>> DeviceHandlers::handle(cmd::QueryCpusFast, const Empty&, Request&) {
  return std::vector<qmp::CpuInfoFast>{};
}

QmpResult<std::vector<qmp::ObjectPropertyInfo>> DeviceHandlers::handle(cmd::QomList, const qmp::QomPathArgs& args,
                                                                       Request&) {
  const auto object = find_object(args.path);
  if (!object) return object.error();
  std::vector<qmp::ObjectPropertyInfo> properties;
  properties.push_back({"type", "string", std::nullopt, std::nullopt});
  for (const auto& child : (*object)->children) {
    properties.push_back({std::string(child.name), fmt::format("child<{}>", child.type), std::nullopt, std::nullopt});
  }
  return properties;
}

QmpResult<qmp::Any> DeviceHandlers::handle(cmd::QomGet, const qmp::QomGetArgs& args, Request&) {
  const auto found = find_object(args.path);
  if (!found) return found.error();
  const Object& object = **found;
  if (args.property == "type") return qmp::Any{std::string(object.type)};
  for (const auto& child : object.children) {
    if (child.name != args.property) continue;
    return qmp::Any{fmt::format("{}/{}", object.path == "/" ? "" : object.path, child.name)};
  }
  return qmp::QmpError(fmt::format("Property '{}.{}' not found", object.type, args.property));
}

QmpResult<Empty> DeviceHandlers::handle(cmd::ObjectAdd, const qmp::ObjectAddArgs& args, Request&) {
  return qmp::refused_object(args);
}

QmpResult<Empty> DeviceHandlers::handle(cmd::ObjectDel, const qmp::ObjectDelArgs& args, Request&) {
  return qmp::QmpError(fmt::format("object '{}' not found", args.id));
}

// There are no network cards whose neighbours could be told.
QmpResult<Empty> DeviceHandlers::handle(cmd::AnnounceSelf, const qmp::AnnounceSelfArgs&, Request&) { return Empty{}; }

QmpResult<Empty> DeviceHandlers::handle(cmd::SetVcpuDirtyLimit, const qmp::SetVcpuDirtyLimitArgs&, Request&) {
  return qmp::QmpError("dirty page limit feature requires KVM with accelerator property 'dirty-ring-size' set'");
}

QmpResult<Empty> DeviceHandlers::handle(cmd::CancelVcpuDirtyLimit, const qmp::CancelVcpuDirtyLimitArgs&, Request&) {
  return Empty{};
}

QmpResult<std::vector<qmp::DirtyLimitInfo>> DeviceHandlers::handle(cmd::QueryVcpuDirtyLimit, const Empty&, Request&) {
  return std::vector<qmp::DirtyLimitInfo>{};
}

}  // namespace migrationd::control
