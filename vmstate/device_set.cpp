// SPDX-License-Identifier: Apache-2.0
#include "vmstate/device_set.hpp"

#include "base/limits.hpp"
#include "vmstate/engine.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::vmstate {

std::uint32_t DeviceSet::free_instance(std::string_view id) const {
  std::uint32_t next = 0;
  for (const Device& device : devices_) {
    if (device.id == id) next = std::max(next, device.instance_id + 1);
  }
  return next;
}

Result<void> DeviceSet::add_device(const Description& table, void* object, Identity identity) {
  Device device;
  device.table = &table;
  device.object = object;
  device.has_path = !identity.path.empty();
  device.id = device.has_path ? fmt::format("{}/{}", identity.path, table.name) : std::string(table.name);
  if (device.id.size() > limits::name_bytes) {
    return machine_error(fmt::format("Path too long for VMState ({})", printable(device.id)));
  }
  device.instance_id = identity.instance_id.value_or(free_instance(device.id));
  const auto taken = [&](const Device& other) {
    return other.id == device.id && other.instance_id == device.instance_id;
  };
  if (std::any_of(devices_.begin(), devices_.end(), taken)) {
    return machine_error(
        fmt::format("device '{}' instance {} is registered twice", printable(device.id), device.instance_id));
  }
  device.compat_instance_id = static_cast<std::uint32_t>(std::count_if(
      devices_.begin(), devices_.end(), [&](const Device& other) { return other.table->name == table.name; }));
  device.section_id = next_section_id_++;
  const auto after = std::find_if(devices_.begin(), devices_.end(),
                                  [&](const Device& other) { return other.table->priority < table.priority; });
  devices_.insert(after, std::move(device));
  return {};
}

std::optional<std::size_t> DeviceSet::find(std::string_view id, std::uint32_t instance_id) const {
  for (std::size_t i = 0; i < devices_.size(); ++i) {
    const Device& device = devices_[i];
    if (device.id == id && device.instance_id == instance_id) return i;
    if (device.has_path && device.table->name == id && device.compat_instance_id == instance_id) return i;
  }
  return std::nullopt;
}

std::vector<std::string> DeviceSet::blocked_reasons() const {
  std::vector<std::string> reasons;
  for (const Device& device : devices_) {
    if (device.table->unmigratable) reasons.push_back("non-migratable device: " + device.id);
  }
  return reasons;
}

Result<std::vector<SavedSection>> DeviceSet::save() {
  std::vector<SavedSection> sections;
  for (const Device& device : devices_) {
    if (device.table->unmigratable) {
      return machine_error(fmt::format("State blocked by non-migratable device '{}'", printable(device.id)));
    }
    if (device.table->needed != nullptr && !device.table->needed(device.object)) continue;
    SavedSection section;
    section.section_id = device.section_id;
    section.name = device.id;
    section.instance_id = device.instance_id;
    section.version_id = device.table->version;
    section.early = device.table->early;
    ByteWriter out;
    auto saved = save_state(*device.table, device.object, out, &section.layout);
    if (!saved) return std::move(saved).error().with(fmt::format("save device '{}'", printable(device.id)));
    section.body = std::move(out).take();
    sections.push_back(std::move(section));
  }
  std::stable_partition(sections.begin(), sections.end(), [](const SavedSection& section) { return section.early; });
  return sections;
}

Result<void> LoadPass::load(std::string_view name, std::uint32_t instance_id, std::uint32_t version_id,
                            ByteReader& in) {
  const auto at = set_.find(name, instance_id);
  if (!at) {
    return wire_error(
        fmt::format("Unknown savevm section or instance '{}' {}. Make sure that your current VM setup matches your "
                    "saved VM setup, including any hotplugged devices",
                    printable(name, limits::name_bytes), instance_id));
  }
  const DeviceSet::Device& device = set_.devices_[*at];
  const std::string shown = printable(name, limits::name_bytes);
  const auto newest = static_cast<std::int32_t>(device.table->version);
  if (static_cast<std::int32_t>(version_id) > newest) {
    return wire_error(fmt::format("savevm: unsupported version {} for '{}' v{}", version_id, shown, newest));
  }
  if (loaded_[*at]) return wire_error(fmt::format("device '{}' instance {} came twice", shown, instance_id));
  loaded_[*at] = true;
  if (device.table->unmigratable) {
    return machine_error(fmt::format("State blocked by non-migratable device '{}'", shown));
  }
  auto result = load_state(*device.table, device.object, version_id, in);
  if (!result) {
    return std::move(result).error().with(
        fmt::format("error while loading state for instance {:#x} of device '{}'", instance_id, shown));
  }
  return {};
}

Result<void> LoadPass::load(const SectionView& section) {
  ByteReader in(section.body);
  MD_CHECK(load(section.name, section.instance_id, section.version_id, in));
  if (in.at_end()) return {};
  return wire_error(fmt::format("Missing section footer for {}: {} bytes at offset {:#x} of its state are left over",
                                printable(section.name, limits::name_bytes), in.remaining(), in.position()));
}

std::vector<std::string> LoadPass::missing() const {
  std::vector<std::string> ids;
  for (std::size_t i = 0; i < loaded_.size(); ++i) {
    if (!loaded_[i]) ids.push_back(set_.devices_[i].id);
  }
  return ids;
}

std::string describe_stream(std::span<const SavedSection> sections, std::uint32_t page_size,
                            const Layout* configuration) {
  std::string out = "{";
  if (configuration != nullptr) out += "\"configuration\": {" + json_members(*configuration) + "}, ";
  out += fmt::format("\"page_size\": {}, \"devices\": [", page_size);
  for (std::size_t i = 0; i < sections.size(); ++i) {
    if (i > 0) out += ", ";
    out += fmt::format("{{\"name\": {}, \"instance_id\": {}, {}}}", json_string(sections[i].name),
                       sections[i].instance_id, json_members(sections[i].layout));
  }
  out += "]}";
  out.append(description_padding(out.size()), ' ');
  return out;
}

}  // namespace migrationd::vmstate
