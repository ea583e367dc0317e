// SPDX-License-Identifier: Apache-2.0
// A channel of multifd: the first byte chooses the method, a hello, then packets with their payloads. What was taken
// is encoded again, and taken again as the same.
#include "protocol/stream/multifd_packet.hpp"

#include <array>
#include <cstdlib>
#include <vector>

using namespace migrationd;
using namespace migrationd::stream;

namespace {

void must(bool condition) {
  if (!condition) std::abort();
}

constexpr std::array methods{MultifdMethod::none, MultifdMethod::zlib, MultifdMethod::zstd};

void check(const MultifdPacket& packet, MultifdMethod method) {
  must(packet.normal() + packet.zero() <= multifd_packet_pages);
  must(packet.payload_bytes() <= multifd_payload_max);
  if (!packet.has_pages()) {
    must(packet.payload_bytes() == 0);
    return;
  }
  must(!packet.block().empty() && packet.block().size() < multifd_name_bytes);
  std::vector<std::uint64_t> offsets;
  for (std::size_t i = 0; i < packet.normal() + packet.zero(); ++i) offsets.push_back(packet.offset(i));
  std::array<std::byte, multifd_header_bytes> again{};
  encode_multifd_pages(again,
                       {method, packet.block(), packet.normal(), offsets, packet.payload_bytes(), packet.number()});
  const auto decoded = decode_multifd_packet(again, method);
  must(decoded.has_value());
  must(decoded->normal() == packet.normal() && decoded->zero() == packet.zero());
  must(decoded->block() == packet.block() && decoded->payload_bytes() == packet.payload_bytes());
  for (std::size_t i = 0; i < offsets.size(); ++i) must(decoded->offset(i) == offsets[i]);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ByteView rest = std::as_bytes(std::span(data, size));
  if (rest.size() < 1 + multifd_hello_bytes) return 0;
  const MultifdMethod method = methods[static_cast<std::size_t>(rest[0]) % methods.size()];
  const ByteView greeting = rest.subspan(1, multifd_hello_bytes);
  if (const auto hello = decode_multifd_hello(greeting)) {
    must(may_begin_multifd(greeting));
    ByteWriter again;
    encode_multifd_hello(again, *hello);
    must(std::equal(again.view().begin(), again.view().begin() + 25, greeting.begin()));
  } else {
    must(!hello.error().text().empty());
  }
  rest = rest.subspan(1 + multifd_hello_bytes);
  while (rest.size() >= multifd_header_bytes) {
    const auto packet = decode_multifd_packet(rest.first(multifd_header_bytes), method);
    if (!packet) {
      must(!packet.error().text().empty());
      return 0;
    }
    check(*packet, method);
    rest = rest.subspan(multifd_header_bytes);
    if (rest.size() < packet->payload_bytes()) return 0;
    rest = rest.subspan(packet->payload_bytes());
  }
  return 0;
}
