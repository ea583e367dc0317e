// SPDX-License-Identifier: Apache-2.0
//
// The return path: what the destination tells the source, in the opposite direction of the main channel.
//
//   u16 type  u16 length  payload        (length at most 512)
//
//   1 SHUT            u32 value: 0 = success
//   2 PONG            u32 value, echo of a PING
//   3 REQ_PAGES_ID    u64 start, u32 length, str8 block
//   4 REQ_PAGES       u64 start, u32 length        (block of the last REQ_PAGES_ID)
//   5 RECV_BITMAP     str8 block; then, outside the frame:
//                     u64 size, size bytes of bitmap (little-endian bit order), u64 0123456789abcdef
//   6 RESUME_ACK      u32 1
//   7 SWITCHOVER_ACK  -                            (QEMU 10.0)
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/layout.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

namespace migrationd::stream {

namespace reply {
struct Shut {
  std::uint32_t value = 0;
  bool operator==(const Shut&) const = default;
};
struct Pong {
  std::uint32_t value = 0;
  bool operator==(const Pong&) const = default;
};
struct RequestPages {
  std::uint64_t start = 0;   // bytes within the block
  std::uint32_t length = 0;  // bytes, not 0
  std::string block;         // empty: REQ_PAGES, the block of the last request that named one
  bool operator==(const RequestPages&) const = default;
};
struct RecvBitmap {
  std::string block;  // the bitmap follows: decode_received_bitmap()
  bool operator==(const RecvBitmap&) const = default;
};
struct ResumeAck {
  bool operator==(const ResumeAck&) const = default;
};
struct SwitchoverAck {
  bool operator==(const SwitchoverAck&) const = default;
};
}  // namespace reply

using ReturnMessage = std::variant<reply::Shut, reply::Pong, reply::RequestPages, reply::RecvBitmap, reply::ResumeAck,
                                   reply::SwitchoverAck>;

std::string_view return_message_name(const ReturnMessage& message) noexcept;

Decoded<ReturnMessage> decode_return_message(ByteView available);
void encode_return_message(ByteWriter& out, const ReturnMessage& message);

// Bytes of the bitmap of a block of `pages` target pages: ceil(pages / 8), rounded up to a multiple of 8.
std::size_t received_bitmap_bytes(std::uint64_t pages) noexcept;
// The blob behind RECV_BITMAP. `pages` is our own count for that block (at most limits::ram_block_bytes / 4096);
// another size is refused before anything is waited for. The view is the bitmap: bit i of byte i / 8.
Decoded<ByteView> decode_received_bitmap(ByteView available, std::uint64_t pages);
// `bitmap` has received_bitmap_bytes() bytes.
void encode_received_bitmap(ByteWriter& out, ByteView bitmap);

}  // namespace migrationd::stream
