// SPDX-License-Identifier: Apache-2.0
//
// The configuration section: which machine the stream is of, and which capabilities shape it.
//
// Decoding says what the peer sent; check_configuration() says whether that suits us. They are apart because a
// parked machine takes its configuration from the stream and has nothing to compare the name with.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/layout.hpp"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::stream {

using Uuid = std::array<std::byte, uuid_bytes>;

struct Configuration {
  std::string machine_name;                              // resolved name, e.g. "pc-i440fx-7.2"; 1..255 bytes
  std::optional<std::uint32_t> target_page_bits;         // only if the subsection was there
  std::optional<std::vector<std::string>> capabilities;  // only if the subsection was there
  std::optional<Uuid> uuid;                              // bytes in the order of the textual form

  bool operator==(const Configuration&) const = default;
};

// The only capabilities QEMU lists, in the order it lists them.
inline constexpr std::string_view capability_ignore_shared = "x-ignore-shared";
inline constexpr std::string_view capability_mapped_ram = "mapped-ram";

// Decodes the whole section, the 07 byte included. Looks one byte behind it (is it 05?), which every stream has.
Decoded<Configuration> decode_configuration(ByteView available);
// Subsections in QEMU's order. The name must be 1..255 bytes (callers prove it when they take it).
void encode_configuration(ByteWriter& out, const Configuration& configuration);

struct ConfigurationExpectations {
  std::optional<std::string> machine_name;  // nothing: any is taken
  bool ignore_shared = false;               // own setting of x-ignore-shared
  bool mapped_ram = false;                  // own setting of mapped-ram
  std::optional<Uuid> uuid;                 // nothing: a received one only warns
};

// QEMU's comparison rules (both directions for capabilities; the received name may be a prefix of ours).
// Returns warnings to log; an error refuses the stream.
Result<std::vector<std::string>> check_configuration(const Configuration& received,
                                                     const ConfigurationExpectations& local);

}  // namespace migrationd::stream
