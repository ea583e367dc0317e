// SPDX-License-Identifier: Apache-2.0
//
// What travels on the extra channels of a migration (multifd.md 3, 4): one hello per channel, then packets.
//
//   hello   = u32 magic  u32 version  16 bytes uuid  u8 channel  39 reserved                          64 bytes
//   packet  = header payload
//   header  = u32 magic  u32 version  u32 flags  u32 room  u32 normal  u32 payload  u64 number
//             u32 zero  28 reserved  256 bytes block name  u64 offset[128]                          1344 bytes
//   payload = the normal pages' bytes, as the method of the flags says
//
// A packet is about pages of one block: offset[0 ... normal) have their bytes in the payload, the `zero` behind them
// are all zero. A packet with neither is a mark (SYNC) or nothing. QEMU 7.2 reuses its header buffer: where nothing is
// counted, payload size, name and offsets are leftovers and are not looked at. Its SYNC may come with pages.
//
// Codecs only. Whether a block exists and an offset lies in it, RamMap::prove() says.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/layout.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace migrationd::stream {

inline constexpr std::uint32_t multifd_magic = 0x11223344;
inline constexpr std::uint32_t multifd_version = 1;
inline constexpr std::size_t multifd_hello_bytes = 64;
inline constexpr std::size_t multifd_packet_pages = 128;  // 512 KiB of pages
inline constexpr std::size_t multifd_packet_data = multifd_packet_pages * page_bytes;
inline constexpr std::size_t multifd_name_bytes = 256;
inline constexpr std::size_t multifd_offsets_at = 64 + multifd_name_bytes;
inline constexpr std::size_t multifd_header_bytes = multifd_offsets_at + multifd_packet_pages * 8;
static_assert(multifd_header_bytes == 1344);
// QEMU's receivers have buffers of this size for a compressed payload, and 7.2 does not check: never send more.
inline constexpr std::size_t multifd_payload_max = 2 * multifd_packet_data;

namespace multifd_flag {
inline constexpr std::uint32_t sync = 0x01;
inline constexpr std::uint32_t method_mask = 0x3e;
inline constexpr std::uint32_t device_state = 0x40;
}  // namespace multifd_flag

// The value of the method bits; one value, not a set. QEMU has others, behind hardware.
enum class MultifdMethod : std::uint32_t { none = 0x00, zlib = 0x02, zstd = 0x04 };

struct MultifdHello {
  Uuid uuid{};               // all zero: the source was given none
  std::uint8_t channel = 0;  // 0 ... N-1
};

// True when `seen`, of any length, can be the beginning of a hello.
bool may_begin_multifd(ByteView seen) noexcept;
// `bytes` has multifd_hello_bytes. Reserved bytes are not looked at. Whose uuid and which numbers are right is the
// caller's to know.
Result<MultifdHello> decode_multifd_hello(ByteView bytes);
void encode_multifd_hello(ByteWriter& out, const MultifdHello& hello);

// A header that was checked: counts fit, the name ends, offsets are whole pages. Views into the bytes shown.
class MultifdPacket {
 public:
  bool sync() const noexcept { return sync_; }
  std::size_t normal() const noexcept { return normal_; }
  std::size_t zero() const noexcept { return zero_; }
  bool has_pages() const noexcept { return normal_ + zero_ > 0; }
  // 0 in SYNC packets of QEMU 9.0 and newer; older ones always say 128.
  std::size_t room() const noexcept { return room_; }
  // Bytes that follow the header: exactly normal() pages with method none.
  std::size_t payload_bytes() const noexcept { return payload_; }
  std::uint64_t number() const noexcept { return number_; }
  // Not empty when has_pages().
  std::string_view block() const noexcept { return block_; }
  // index < normal() + zero(); a multiple of page_bytes. The first normal() are those of the payload, in its order.
  std::uint64_t offset(std::size_t index) const noexcept { return load_be<std::uint64_t>(offsets_.data() + 8 * index); }

 private:
  friend Result<MultifdPacket> decode_multifd_packet(ByteView header, MultifdMethod method);
  bool sync_ = false;
  std::size_t normal_ = 0;
  std::size_t zero_ = 0;
  std::size_t room_ = 0;
  std::size_t payload_ = 0;
  std::uint64_t number_ = 0;
  std::string_view block_;
  ByteView offsets_;
};

// `header` has multifd_header_bytes; `method` is the one both sides were given. Errors: ErrorKind::wire, QEMU's words.
Result<MultifdPacket> decode_multifd_packet(ByteView header, MultifdMethod method);

// A header as QEMU 10.0 writes it: everything not said is zero. `offsets` holds the normal pages, then the zero ones,
// 1 to multifd_packet_pages together; `block` is shorter than multifd_name_bytes; `out` has multifd_header_bytes.
struct MultifdPages {
  MultifdMethod method = MultifdMethod::none;
  std::string_view block;
  std::size_t normal = 0;
  std::span<const std::uint64_t> offsets;
  std::size_t payload_bytes = 0;
  std::uint64_t number = 0;
};
void encode_multifd_pages(std::span<std::byte, multifd_header_bytes> out, const MultifdPages& packet) noexcept;
void encode_multifd_sync(std::span<std::byte, multifd_header_bytes> out, std::uint64_t number) noexcept;

}  // namespace migrationd::stream
