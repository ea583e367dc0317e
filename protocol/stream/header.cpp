// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/header.hpp"

#include <fmt/format.h>

namespace migrationd::stream {

Decoded<Header> decode_header(ByteView available) {
  std::byte expected[4];
  store_be(expected, magic);
  // Byte by byte, so that a probe that speaks another protocol is refused by its first byte.
  for (std::size_t i = 0; i < available.size() && i < sizeof expected; ++i) {
    if (available[i] != expected[i]) {
      return wire_error(fmt::format("header: magic is wrong: \"{}\" is not \"QEVM\"",
                                    printable(as_text(available.first(std::min<std::size_t>(available.size(), 4))))));
    }
  }
  if (available.size() < header_bytes) return Decoded<Header>::need_more(header_bytes);
  const auto got = load_be<std::uint32_t>(available.data() + sizeof expected);
  if (got == obsolete_version) return wire_error("header: version 2 is obsolete and not supported");
  if (got != version) return wire_error(fmt::format("header: version {} is not supported, only {}", got, version));
  return Decoded<Header>::ready({}, header_bytes);
}

void encode_header(ByteWriter& out) { out.u32(magic).u32(version); }

}  // namespace migrationd::stream
