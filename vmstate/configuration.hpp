// SPDX-License-Identifier: Apache-2.0
//
// The configuration section as a description, so that the stream's own description can account for its bytes
// (docs/formats/vmstate.md, "The configuration section"). The section's codec, which also compares both sides,
// is the stream's; this is the table for whoever writes or reads the self-description.
//
// On the wire: u32 length and the machine name without terminator, then the subsections that apply. There is no
// section header, no version (read as version 0) and no footer.
//
// Thread: values.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "vmstate/description.hpp"
#include "vmstate/self_description.hpp"

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace migrationd::vmstate {

struct Configuration {
  static constexpr std::uint32_t most_capabilities = 16;  // QEMU 10.0 validates two

  std::uint32_t name_length = 0;
  std::array<char, 255> name{};
  std::uint32_t page_bits = 0;  // 0: the subsection is not sent
  std::uint32_t capability_count = 0;
  std::array<CapabilityName, most_capabilities> capabilities{};
  bool has_uuid = false;
  std::array<std::uint8_t, 16> uuid{};

  std::string_view machine_name() const noexcept { return {name.data(), name_length}; }
};

// Errors (ErrorKind::plan): a machine name above 255 bytes or a capability name above 255, or too many of them.
Result<Configuration> make_configuration(std::string_view machine_name, std::optional<std::uint32_t> page_bits,
                                         std::span<const std::string_view> capabilities,
                                         std::optional<std::span<const std::byte, 16>> uuid);

extern const DescriptionOf<Configuration> configuration_description;

// What stands behind the section's type byte, and its layout for describe_stream().
Result<Bytes> save_configuration(Configuration& configuration, Layout* layout);
// Reads the same; `in` is left behind the section's last byte.
Result<Configuration> load_configuration(ByteReader& in);

// Puts the configuration's description in front of a stream description that has none ("{"page_size": ...").
// Text of another shape comes back unchanged. Padding is made anew.
std::string with_configuration(std::string_view description, const Layout& configuration);

}  // namespace migrationd::vmstate
