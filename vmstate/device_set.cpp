// SPDX-License-Identifier: Apache-2.0
#include "vmstate/device_set.hpp"

#include "base/limits.hpp"
#include "vmstate/dump.hpp"
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

Result<void> DeviceSet::add_table(const Description& table, void* object, Identity identity) {
  if (table.unmigratable && blockers_.only_migratable()) {
    return machine_error(
        fmt::format("Device {} is not migratable, but --only-migratable was specified", printable(table.name)));
  }
  if (identity.alias_id && identity.alias_since_version < table.minimum_version) {
    return machine_error(fmt::format("device '{}' has an alias since version {}, but is readable from {} on",
                                     printable(table.name), identity.alias_since_version, table.minimum_version));
  }
  Device device;
  device.table = &table;
  device.object = object;
  device.has_path = !identity.path.empty();
  device.alias_id = identity.alias_id;
  device.id = device.has_path ? fmt::format("{}/{}", identity.path, table.name) : std::string(table.name);
  return insert(std::move(device), identity);
}

Result<void> DeviceSet::add_legacy(std::string id, LegacyHandlers handlers, std::optional<std::uint32_t> instance_id) {
  Device device;
  device.legacy = std::make_unique<LegacyDevice>();
  device.legacy->id = id;
  device.legacy->table.name = device.legacy->id;
  device.legacy->table.version = handlers.version;
  device.legacy->handlers = std::move(handlers);
  device.table = &device.legacy->table;
  device.id = std::move(id);
  Identity identity;
  identity.instance_id = instance_id;
  return insert(std::move(device), identity);
}

Result<void> DeviceSet::insert(Device device, const Identity& identity) {
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
  const auto same_table = [&](const Device& other) { return other.table->name == device.table->name; };
  device.compat_instance_id = identity.compat_instance_id.value_or(
      static_cast<std::uint32_t>(std::count_if(devices_.begin(), devices_.end(), same_table)));
  device.section_id = next_section_id_++;
  const auto after = std::find_if(devices_.begin(), devices_.end(),
                                  [&](const Device& other) { return other.table->priority < device.table->priority; });
  devices_.insert(after, std::move(device));
  return {};
}

void DeviceSet::remove(const void* object) {
  std::erase_if(devices_, [object](const Device& device) { return device.object == object; });
}

bool DeviceSet::Device::answers_to(std::string_view name, std::uint32_t instance) const {
  if (id == name && (instance_id == instance || alias_id == instance)) return true;
  return has_path && table->name == name && (compat_instance_id == instance || alias_id == instance);
}

std::optional<std::size_t> DeviceSet::find(std::string_view id, std::uint32_t instance_id) const {
  const auto found = std::find_if(devices_.begin(), devices_.end(),
                                  [&](const Device& device) { return device.answers_to(id, instance_id); });
  if (found == devices_.end()) return std::nullopt;
  return static_cast<std::size_t>(found - devices_.begin());
}

std::vector<std::string> DeviceSet::blocked_reasons(MigrationMode mode) const {
  std::vector<std::string> reasons = blockers_.reasons(mode);
  for (const Device& device : devices_) {
    if (device.table->unmigratable) reasons.push_back("non-migratable device: " + device.id);
  }
  return reasons;
}

Result<void> DeviceSet::may_migrate(MigrationMode mode) const {
  for (const Device& device : devices_) {
    if (!device.table->unmigratable) continue;
    return machine_error(fmt::format("State blocked by non-migratable device '{}'", printable(device.id)));
  }
  return blockers_.refusal(mode);
}

std::vector<std::string> DeviceSet::unplug_pending() const {
  std::vector<std::string> ids;
  for (const Device& device : devices_) {
    const auto pending = device.table->unplug_pending;
    if (pending != nullptr && pending(device.object)) ids.push_back(device.id);
  }
  return ids;
}

Result<void> DeviceSet::apply(const CompatProperty& compat) {
  for (const Device& device : devices_) {
    if (device.table->name != compat.device) continue;
    const auto& properties = device.table->properties;
    const auto found = std::find_if(properties.begin(), properties.end(),
                                    [&](const Property& property) { return property.name == compat.property; });
    if (found == properties.end()) {
      return plan_error(fmt::format("device '{}' has no property '{}'", compat.device, compat.property));
    }
    MD_CHECK(set_property(*found, device.object, compat.value));
  }
  return {};
}

Result<void> DeviceSet::become(std::string_view version, std::span<const MachineVersion> versions) {
  const auto end = std::find_if(versions.begin(), versions.end(),
                                [&](const MachineVersion& known) { return known.name == version; });
  if (end == versions.end()) return plan_error(fmt::format("unknown machine version '{}'", printable(version)));
  for (auto at = versions.begin(); at != end + 1; ++at) {
    for (const CompatProperty& compat : at->compat) MD_CHECK(apply(compat));
  }
  return {};
}

Result<SavedSection> DeviceSet::save_device(const Device& device) const {
  SavedSection section;
  section.section_id = device.section_id;
  section.name = device.id;
  section.instance_id = device.instance_id;
  section.version_id = device.table->version;
  section.early = device.table->early;
  section.legacy = device.legacy != nullptr;
  ByteWriter out;
  auto saved = section.legacy ? device.legacy->handlers.save(out)
                              : save_state(*device.table, device.object, out, &section.layout);
  if (!saved) return std::move(saved).error().with(fmt::format("save device '{}'", printable(device.id)));
  section.body = std::move(out).take();
  return section;
}

Result<std::vector<SavedSection>> DeviceSet::save(MigrationMode mode) {
  MD_CHECK(may_migrate(mode));
  std::vector<SavedSection> sections;
  for (const Device& device : devices_) {
    if (device.table->needed != nullptr && !device.table->needed(device.object)) continue;
    MD_TRY(SavedSection section, save_device(device));
    sections.push_back(std::move(section));
  }
  std::stable_partition(sections.begin(), sections.end(), [](const SavedSection& section) { return section.early; });
  return sections;
}

std::string DeviceSet::dump_tables(std::string_view machine) const {
  std::vector<DumpedDevice> dumped;
  for (const Device& device : devices_) {
    dumped.push_back({device.id, device.instance_id, device.table, device.legacy != nullptr});
  }
  return vmstate::dump_tables(dumped, machine);
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
  auto result = device.legacy ? device.legacy->handlers.load(in, version_id)
                              : load_state(*device.table, device.object, version_id, in);
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

namespace {

// One without a table is one buffer.
std::string described(const SavedSection& section) {
  if (!section.legacy) return json_members(section.layout);
  return fmt::format("\"size\": {0}, \"fields\": [{{\"name\": \"data\", \"size\": {0}, \"type\": \"buffer\"}}]",
                     section.body.size());
}

}  // namespace

std::string describe_stream(std::span<const SavedSection> sections, std::uint32_t page_size,
                            const Layout* configuration) {
  std::string out = "{";
  if (configuration != nullptr) out += "\"configuration\": {" + json_members(*configuration) + "}, ";
  out += fmt::format("\"page_size\": {}, \"devices\": [", page_size);
  for (std::size_t i = 0; i < sections.size(); ++i) {
    if (i > 0) out += ", ";
    out += fmt::format("{{\"name\": {}, \"instance_id\": {}, {}}}", json_string(sections[i].name),
                       sections[i].instance_id, described(sections[i]));
  }
  out += "]}";
  out.append(description_padding(out.size()), ' ');
  return out;
}

}  // namespace migrationd::vmstate
