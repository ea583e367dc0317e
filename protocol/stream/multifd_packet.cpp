// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/multifd_packet.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>

namespace migrationd::stream {
namespace {

// Places in the header.
constexpr std::size_t flags_at = 8;
constexpr std::size_t room_at = 12;
constexpr std::size_t normal_at = 16;
constexpr std::size_t payload_at = 20;
constexpr std::size_t number_at = 24;
constexpr std::size_t zero_at = 32;
constexpr std::size_t name_at = 64;

Result<void> check_magic(ByteView bytes, std::string_view what) {
  const auto magic_seen = load_be<std::uint32_t>(bytes.data());
  if (magic_seen != multifd_magic)
    return wire_error(fmt::format("{}received packet magic {:x}, expected {:x}", what, magic_seen, multifd_magic));
  const auto version_seen = load_be<std::uint32_t>(bytes.data() + 4);
  if (version_seen != multifd_version)
    return wire_error(fmt::format("{}received packet version {}, expected {}", what, version_seen, multifd_version));
  return {};
}

struct Counts {
  std::uint32_t room = 0;
  std::uint32_t normal = 0;
  std::uint32_t zero = 0;
};

Result<void> check_counts(const Counts& counts) {
  if (counts.room > multifd_packet_pages)
    return wire_error(fmt::format("received packet with {} pages, expected {}", counts.room, multifd_packet_pages));
  if (counts.normal > counts.room)
    return wire_error(fmt::format("received packet with {} non-zero pages, which exceeds maximum expected pages {}",
                                  counts.normal, counts.room));
  if (counts.zero > counts.room - counts.normal)
    return wire_error(fmt::format("received packet with {} zero pages, expected maximum {}", counts.zero,
                                  counts.room - counts.normal));
  return {};
}

Result<std::size_t> payload_of(const Counts& counts, std::uint32_t said, MultifdMethod method) {
  const std::size_t raw = counts.normal * page_bytes;
  // The count alone decides where nothing is compressed, as in QEMU.
  if (method == MultifdMethod::none) return raw;
  if (counts.normal == 0) {
    if (said != 0) return wire_error("expected empty packet");
    return std::size_t{0};
  }
  if (said > multifd_payload_max)
    return wire_error(fmt::format("next_packet_size {} exceeds allocated {}", said, multifd_payload_max));
  return std::size_t{said};
}

void begin_header(std::span<std::byte, multifd_header_bytes> out, std::uint32_t flags, std::uint64_t number) noexcept {
  std::fill(out.begin(), out.end(), std::byte{0});
  store_be(out.data(), multifd_magic);
  store_be(out.data() + 4, multifd_version);
  store_be(out.data() + flags_at, flags);
  store_be(out.data() + number_at, number);
}

}  // namespace

bool may_begin_multifd(ByteView seen) noexcept {
  std::array<std::byte, 4> expected{};
  store_be(expected.data(), multifd_magic);
  const std::size_t count = std::min(seen.size(), expected.size());
  return std::equal(seen.begin(), seen.begin() + static_cast<std::ptrdiff_t>(count), expected.begin());
}

Result<MultifdHello> decode_multifd_hello(ByteView bytes) {
  assert(bytes.size() == multifd_hello_bytes);
  MD_CHECK(check_magic(bytes, "multifd: "));
  MultifdHello hello;
  std::memcpy(hello.uuid.data(), bytes.data() + 8, hello.uuid.size());
  hello.channel = static_cast<std::uint8_t>(bytes[8 + uuid_bytes]);
  return hello;
}

void encode_multifd_hello(ByteWriter& out, const MultifdHello& hello) {
  out.u32(multifd_magic).u32(multifd_version).bytes(hello.uuid).u8(hello.channel);
  out.zeros(multifd_hello_bytes - 4 - 4 - uuid_bytes - 1);
}

Result<MultifdPacket> decode_multifd_packet(ByteView header, MultifdMethod method) {
  assert(header.size() == multifd_header_bytes);
  MD_CHECK(check_magic(header, ""));
  const auto flags = load_be<std::uint32_t>(header.data() + flags_at);
  if ((flags & multifd_flag::device_state) != 0)
    return wire_error("a packet with the state of a device: there is none here that could take it");
  const Counts counts{load_be<std::uint32_t>(header.data() + room_at),
                      load_be<std::uint32_t>(header.data() + normal_at),
                      load_be<std::uint32_t>(header.data() + zero_at)};
  MD_CHECK(check_counts(counts));

  MultifdPacket packet;
  packet.sync_ = (flags & multifd_flag::sync) != 0;
  packet.room_ = counts.room;
  packet.number_ = load_be<std::uint64_t>(header.data() + number_at);
  packet.normal_ = counts.normal;
  packet.zero_ = counts.zero;
  if (!packet.has_pages()) return packet;

  const std::uint32_t method_seen = flags & multifd_flag::method_mask;
  const auto expected = static_cast<std::uint32_t>(method);
  if (method_seen != expected)
    return wire_error(
        fmt::format("flags received {:x} flags expected {:x} (is multifd-compression the same on both "
                    "sides?)",
                    method_seen, expected));
  MD_TRY(packet.payload_, payload_of(counts, load_be<std::uint32_t>(header.data() + payload_at), method));
  const std::string_view name = as_text(header.subspan(name_at, multifd_name_bytes));
  const std::size_t length = name.find('\0');
  if (length == std::string_view::npos || length == 0) return wire_error("the block's name is empty or has no end");
  packet.block_ = name.substr(0, length);
  packet.offsets_ = header.subspan(multifd_offsets_at, (counts.normal + counts.zero) * std::size_t{8});
  for (std::size_t index = 0; index < packet.normal_ + packet.zero_; ++index) {
    if (packet.offset(index) % page_bytes != 0)
      return wire_error(fmt::format("block '{}': offset {} is not at a page's start", printable(packet.block_),
                                    hex(packet.offset(index))));
  }
  return packet;
}

void encode_multifd_pages(std::span<std::byte, multifd_header_bytes> out, const MultifdPages& packet) noexcept {
  assert(packet.offsets.size() <= multifd_packet_pages && packet.normal <= packet.offsets.size());
  assert(packet.block.size() < multifd_name_bytes);
  begin_header(out, static_cast<std::uint32_t>(packet.method), packet.number);
  store_be(out.data() + room_at, static_cast<std::uint32_t>(multifd_packet_pages));
  store_be(out.data() + normal_at, static_cast<std::uint32_t>(packet.normal));
  store_be(out.data() + payload_at, static_cast<std::uint32_t>(packet.payload_bytes));
  store_be(out.data() + zero_at, static_cast<std::uint32_t>(packet.offsets.size() - packet.normal));
  std::memcpy(out.data() + name_at, packet.block.data(), packet.block.size());
  std::byte* at = out.data() + multifd_offsets_at;
  for (const std::uint64_t offset : packet.offsets) {
    store_be(at, offset);
    at += 8;
  }
}

void encode_multifd_sync(std::span<std::byte, multifd_header_bytes> out, std::uint64_t number) noexcept {
  begin_header(out, multifd_flag::sync, number);
}

}  // namespace migrationd::stream
