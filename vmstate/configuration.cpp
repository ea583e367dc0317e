// SPDX-License-Identifier: Apache-2.0
#include "vmstate/configuration.hpp"

#include "vmstate/engine.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::vmstate {
namespace {

bool has_page_bits(const Configuration& configuration) { return configuration.page_bits != 0; }
bool has_capabilities(const Configuration& configuration) { return configuration.capability_count != 0; }
bool has_uuid(const Configuration& configuration) { return configuration.has_uuid; }
void uuid_came(Configuration& configuration) { configuration.has_uuid = true; }

constexpr Field page_bits_fields[] = {field<&Configuration::page_bits>("page_bits")};
constexpr auto page_bits_part = describe<Configuration>("configuration/target-page-bits", 1)
                                    .fields(page_bits_fields)
                                    .readable_from(1)
                                    .needed_if<&has_page_bits>();

constexpr Field capability_fields[] = {
    field<&Configuration::capability_count>("caps_count"),
    counted<&Configuration::capabilities, &Configuration::capability_count>("capabilities"),
};
constexpr auto capability_part = describe<Configuration>("configuration/capabilities", 1)
                                     .fields(capability_fields)
                                     .readable_from(1)
                                     .needed_if<&has_capabilities>();

constexpr Field uuid_fields[] = {field<&Configuration::uuid>("uuid")};
constexpr auto uuid_part = describe<Configuration>("configuration/uuid", 1)
                               .fields(uuid_fields)
                               .readable_from(1)
                               .needed_if<&has_uuid>()
                               .post_load<&uuid_came>();

constexpr Field configuration_fields[] = {
    field<&Configuration::name_length>("len"),
    counted_buffer<&Configuration::name, &Configuration::name_length>("name"),
};
constexpr const Description* configuration_parts[] = {&page_bits_part, &capability_part, &uuid_part};
constexpr auto configuration_table =
    describe<Configuration>("configuration", 1).fields(configuration_fields).subsections(configuration_parts);
static_assert(check(configuration_table) == TableFault::none);

}  // namespace

constinit const DescriptionOf<Configuration> configuration_description = configuration_table;

Result<Configuration> make_configuration(std::string_view machine_name, std::optional<std::uint32_t> page_bits,
                                         std::span<const std::string_view> capabilities,
                                         std::optional<std::span<const std::byte, 16>> uuid) {
  Configuration out;
  if (machine_name.size() > out.name.size()) return plan_error("the machine name is longer than 255 bytes");
  if (capabilities.size() > Configuration::most_capabilities) {
    return plan_error(fmt::format("more than {} capabilities", Configuration::most_capabilities));
  }
  out.name_length = static_cast<std::uint32_t>(machine_name.size());
  std::copy(machine_name.begin(), machine_name.end(), out.name.begin());
  out.page_bits = page_bits.value_or(0);
  for (const std::string_view name : capabilities) {
    if (name.size() > 255) return plan_error("a capability's name is longer than 255 bytes");
    out.capabilities[out.capability_count++] = CapabilityName::of(name);
  }
  out.has_uuid = uuid.has_value();
  if (uuid) std::memcpy(out.uuid.data(), uuid->data(), out.uuid.size());
  return out;
}

Result<Bytes> save_configuration(Configuration& configuration, Layout* layout) {
  ByteWriter out;
  MD_CHECK(save(configuration_description, configuration, out, layout));
  return std::move(out).take();
}

Result<Configuration> load_configuration(ByteReader& in) {
  Configuration out;
  MD_CHECK(load(configuration_description, out, 0, in));
  return out;
}

std::string with_configuration(std::string_view description, const Layout& configuration) {
  constexpr std::string_view start = "{\"page_size\"";
  if (description.substr(0, start.size()) != start) return std::string(description);
  while (description.ends_with(' ')) description.remove_suffix(1);
  std::string out = fmt::format("{{\"configuration\": {{{}}}, {}", json_members(configuration), description.substr(1));
  out.append(description_padding(out.size()), ' ');
  return out;
}

}  // namespace migrationd::vmstate
