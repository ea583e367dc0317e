// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/attached_state.hpp"

#include "base/limits.hpp"
#include "daemon/machine/synthetic_devices.hpp"
#include "protocol/stream/vmdescription.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd {
namespace {

const guest::AddDevice* find_device(std::span<const guest::AddDevice> devices, std::string_view id,
                                    std::uint32_t instance) {
  const auto found = std::find_if(devices.begin(), devices.end(),
                                  [&](const auto& device) { return device.id == id && device.instance == instance; });
  return found == devices.end() ? nullptr : &*found;
}

// The device that a section of a stream is for. A stream of an older guest may name it without the path it has here:
// then the instance counts the devices of that name, as the guest's library does.
const guest::AddDevice* find_target(std::span<const guest::AddDevice> devices, std::string_view id,
                                    std::uint32_t instance) {
  if (const auto* const exact = find_device(devices, id, instance)) return exact;
  const std::string tail = fmt::format("/{}", id);
  std::uint32_t number = 0;
  for (const guest::AddDevice& device : devices) {
    const bool has_path = device.id.ends_with(tail);
    if (!has_path && device.id != id) continue;
    if (number++ == instance) return has_path ? &device : nullptr;
  }
  return nullptr;
}

std::string of_device(std::string_view id, std::uint32_t instance) {
  return fmt::format("device '{}' (instance {})", printable(id), instance);
}

// Whether `members`, put between braces, are one JSON object and nothing behind it.
bool is_one_object(std::string_view members) { return nlohmann::json::accept(fmt::format("{{{}}}", members)); }

std::string members_of(const guest::StateSection& section) {
  if (!section.description.empty()) return section.description;
  // Bytes that nobody describes are described as bytes.
  return fmt::format(R"("vmsd_name": {}, "version": {}, "fields": [{{"name": "state", "type": "buffer", "size": {}}}])",
                     nlohmann::json(section.id).dump(), section.version, section.body.size());
}

// A device that is registered and not there has nothing to say now (`needed`), as in QEMU's streams.
Result<void> check_sections(const std::vector<guest::StateSection>& sections,
                            std::span<const guest::AddDevice> devices) {
  for (const guest::StateSection& section : sections) {
    const guest::AddDevice* const device = find_device(devices, section.id, section.instance);
    if (device == nullptr)
      return machine_error(of_device(section.id, section.instance) + ": the guest never registered it");
    if (section.version != device->version)
      return machine_error(fmt::format("{}: saved as version {}, registered as {}",
                                       of_device(section.id, section.instance), section.version, device->version));
  }
  return {};
}

Result<void> check_description(const std::string& text, const std::vector<DeviceSection>& sections) {
  MD_TRY(const stream::VmDescription parsed, stream::parse_description(text));
  if (parsed.devices.size() != sections.size()) return machine_error("the descriptions are not one per device");
  stream::WalkBudget budget{limits::description_walk_steps};
  for (std::size_t i = 0; i < sections.size(); ++i) {
    const stream::DescribedDevice& device = parsed.devices[i];
    const DeviceSection& section = sections[i];
    const std::string who = of_device(section.name, section.instance_id);
    if (device.name != section.name || device.instance_id != section.instance_id)
      return machine_error(who + ": its description is another's");
    auto described = stream::walk_state(device.state, section.body, budget);
    if (!described) return std::move(described).error().with(who + ": description");
    if (*described != section.body.size())
      return machine_error(
          fmt::format("{}: its description accounts for {} of {} bytes", who, *described, section.body.size()));
  }
  return {};
}

}  // namespace

Result<DeviceState> state_to_stream(std::vector<guest::StateSection> sections,
                                    std::span<const guest::AddDevice> devices, std::string_view run_state,
                                    std::uint32_t first_section_id) {
  MD_CHECK(check_sections(sections, devices));
  synthetic::RunState state;
  MD_CHECK(state.set(run_state));
  MD_TRY(auto set, synthetic::run_state_set(state, first_section_id));
  MD_TRY(auto saved, set.save());
  // Ends in "]}": what follows goes between the two.
  std::string text = vmstate::describe_stream(saved, ram::page_size);
  text.resize(text.rfind("]}"));
  DeviceState out;
  for (vmstate::SavedSection& own : saved)
    out.sections.push_back(
        {own.section_id, std::move(own.name), own.instance_id, own.version_id, std::move(own.body), own.early});
  std::stable_sort(sections.begin(), sections.end(), [](const auto& a, const auto& b) { return a.early > b.early; });
  for (guest::StateSection& section : sections) {
    const std::string members = members_of(section);
    if (!is_one_object(members))
      return machine_error(of_device(section.id, section.instance) + ": its description is no JSON");
    text += fmt::format(R"(, {{"name": {}, "instance_id": {}, {}}})", nlohmann::json(section.id).dump(),
                        section.instance, members);
    const auto id = first_section_id + static_cast<std::uint32_t>(out.sections.size());
    out.sections.push_back(
        {id, std::move(section.id), section.instance, section.version, std::move(section.body), section.early});
  }
  text += "]}";
  text.append(vmstate::description_padding(text.size()), ' ');
  MD_CHECK(check_description(text, out.sections));
  out.description = std::move(text);
  return out;
}

Result<StreamState> state_from_stream(DeviceState state, std::span<const guest::AddDevice> devices) {
  StreamState out;
  for (DeviceSection& section : state.sections) {
    if (section.name == "globalstate") {
      synthetic::RunState run_state;
      MD_TRY(auto set, synthetic::run_state_set(run_state, 0));
      vmstate::LoadPass pass(set);
      MD_CHECK(pass.load(vmstate::SectionView{section.name, section.instance_id, section.version_id, section.body}));
      out.run_state = std::string(run_state.text());
      continue;
    }
    const std::string who = of_device(section.name, section.instance_id);
    const guest::AddDevice* const device = find_target(devices, section.name, section.instance_id);
    if (device == nullptr) return machine_error(who + ": the stream has it, the guest here has not");
    if (section.version_id < device->minimum_version || section.version_id > device->version)
      return machine_error(fmt::format("{}: version {} came, the guest here reads {} to {}", who, section.version_id,
                                       device->minimum_version, device->version));
    out.sections.push_back({std::move(section.name), section.instance_id, section.version_id, section.early,
                            std::move(section.body), std::string()});
  }
  return out;
}

}  // namespace migrationd
