// SPDX-License-Identifier: Apache-2.0
#include "guest/devices.hpp"

#include "vmstate/engine.hpp"
#include "vmstate/self_description.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::guest {

namespace {

std::string title_of(const AddDevice& facts) {
  return fmt::format("device '{}' instance {}", facts.id, facts.instance);
}

// An opaque device's state as one buffer.
std::string buffer_description(const std::string& name, std::uint32_t version, std::size_t bytes) {
  vmstate::Layout layout;
  layout.name = name;
  layout.version = version;
  vmstate::FieldLayout field;
  field.name = "state";
  field.type = "buffer";
  field.size = bytes;
  if (bytes > 0) layout.fields.push_back(std::move(field));
  return vmstate::json_members(layout);
}

}  // namespace

Result<void> Devices::add(const md_device& device, void* state, std::string_view path, std::uint32_t instance) {
  MD_TRY(const Table* table, tables_.translate(device));
  Device out;
  out.name = table->name;
  out.table = table;
  out.state = state;
  out.facts.version = table->version;
  out.facts.minimum_version = table->minimum_version;
  out.facts.unmigratable = table->unmigratable;
  out.facts.early = table->early;
  return insert(std::move(out), path, instance);
}

Result<void> Devices::add(const md_opaque& device, void* user, std::string_view path, std::uint32_t instance) {
  Device out;
  const std::string_view name = device.name == nullptr ? std::string_view{} : device.name;
  const auto about = [&](const char* why) {
    return plan_error(fmt::format("opaque device '{}': {}", printable(name), why));
  };
  if (!is_name(name)) return about("its name is not 1 to 255 bytes of printable ASCII");
  if (device.save == nullptr || device.load == nullptr) return about("save or load is NULL");
  if (device.version > 0x7fffffffU) return about("the version is above 0x7fffffff");
  if (device.minimum_version > device.version) return about("the minimum version is above the version");
  out.name = name;
  out.opaque = device;
  out.opaque.name = nullptr;  // the program's string need not live longer than this call
  out.state = user;
  out.facts.version = device.version;
  out.facts.minimum_version = device.minimum_version;
  out.facts.unmigratable = device.unmigratable != 0;
  out.facts.early = device.early != 0;
  return insert(std::move(out), path, instance);
}

Result<void> Devices::insert(Device device, std::string_view path, std::uint32_t instance) {
  AddDevice& facts = device.facts;
  facts.id = path.empty() ? device.name : fmt::format("{}/{}", path, device.name);
  if (!is_name(facts.id)) {
    return plan_error(
        fmt::format("device '{}': path and name are not 1 to 255 bytes of printable ASCII", printable(facts.id)));
  }
  if (devices_.size() >= guest_devices) return plan_error(fmt::format("there are {} devices already", guest_devices));
  facts.instance = instance;
  if (instance == MD_ANY_INSTANCE) {
    facts.instance = 0;
    for (const Device& other : devices_) {
      if (other.facts.id == facts.id) facts.instance = std::max(facts.instance, other.facts.instance + 1);
    }
  }
  const auto is_same = [&](const Device& other) {
    return other.facts.id == facts.id && other.facts.instance == facts.instance;
  };
  if (facts.instance == MD_ANY_INSTANCE || std::any_of(devices_.begin(), devices_.end(), is_same)) {
    return plan_error(fmt::format("{} is there already", title_of(facts)));
  }
  device.of_that_name = static_cast<std::uint32_t>(
      std::count_if(devices_.begin(), devices_.end(), [&](const Device& other) { return other.name == device.name; }));
  devices_.push_back(std::move(device));
  return {};
}

std::vector<AddDevice> Devices::messages() const {
  std::vector<AddDevice> out;
  out.reserve(devices_.size());
  for (const Device& device : devices_) out.push_back(device.facts);
  return out;
}

Result<std::vector<StateSection>> Devices::save() {
  std::vector<StateSection> out;
  for (const Device& device : devices_) {
    const auto needed = device.table != nullptr ? device.table->needed : device.opaque.needed;
    if (needed != nullptr && !needed(device.state)) continue;
    auto section = save_one(device);
    if (!section) return std::move(section).error().with("save " + title_of(device.facts));
    out.push_back(*std::move(section));
  }
  return out;
}

Result<StateSection> Devices::save_one(const Device& device) {
  words_.clear();
  StateSection out;
  out.id = device.facts.id;
  out.instance = device.facts.instance;
  out.version = device.facts.version;
  out.early = device.facts.early;
  if (device.table == nullptr) {
    MD_CHECK(save_opaque(device, out));
    return out;
  }
  ByteWriter bytes;
  vmstate::Layout layout;
  MD_CHECK(vmstate::save_state(*device.table, device.state, bytes, &layout));
  out.body = std::move(bytes).take();
  out.description = vmstate::json_members(layout);
  return out;
}

Result<void> Devices::save_opaque(const Device& device, StateSection& out) {
  md_writer writer;
  if (device.opaque.save(device.state, &writer) != 0) return words_.refused_by("save()");
  if (writer.is_full) {
    return Error(ErrorKind::limit, fmt::format("save() wrote more than {} bytes", limits::device_state_bytes));
  }
  out.body = std::move(writer.bytes);
  out.description = std::move(writer.description);
  if (out.description.empty()) out.description = buffer_description(device.name, out.version, out.body.size());
  return {};
}

Result<void> Devices::load(const std::vector<StateSection>& sections) {
  std::vector<const Device*> loaded;
  for (const StateSection& section : sections) {
    const Device* const device = find(section);
    const auto about = [&](Error error) {
      return std::move(error).with(fmt::format("load device '{}' instance {}", section.id, section.instance));
    };
    if (device == nullptr) return about(machine_error("this guest has no such device"));
    if (std::find(loaded.begin(), loaded.end(), device) != loaded.end()) return about(wire_error("it came twice"));
    loaded.push_back(device);
    if (auto done = load_one(*device, section); !done) return about(std::move(done).error());
  }
  return {};
}

Devices::Device* Devices::find(const StateSection& section) {
  for (Device& device : devices_) {
    if (device.facts.id == section.id && device.facts.instance == section.instance) return &device;
  }
  for (Device& device : devices_) {
    const bool has_path = device.facts.id != device.name;
    if (has_path && device.name == section.id && device.of_that_name == section.instance) return &device;
  }
  return nullptr;
}

Result<void> Devices::load_one(const Device& device, const StateSection& section) {
  words_.clear();
  const AddDevice& facts = device.facts;
  if (section.version > facts.version || section.version < facts.minimum_version) {
    return machine_error(
        fmt::format("version {} is not in {} to {}", section.version, facts.minimum_version, facts.version));
  }
  if (device.table == nullptr) {
    if (device.opaque.load(device.state, section.body.data(), section.body.size(), section.version) == 0) return {};
    return words_.refused_by("load()");
  }
  ByteReader in(section.body);
  MD_CHECK(vmstate::load_state(*device.table, device.state, section.version, in));
  if (!in.at_end()) return wire_error(fmt::format("{} bytes of its state are left over", in.remaining()));
  return {};
}

}  // namespace migrationd::guest
