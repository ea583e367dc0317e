// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/return_path.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

#include <array>

namespace migrationd::stream {

namespace {

using namespace reply;

namespace type {
constexpr std::uint16_t shut = 1;
constexpr std::uint16_t pong = 2;
constexpr std::uint16_t req_pages_id = 3;
constexpr std::uint16_t req_pages = 4;
constexpr std::uint16_t recv_bitmap = 5;
constexpr std::uint16_t resume_ack = 6;
constexpr std::uint16_t switchover_ack = 7;
}  // namespace type

constexpr std::array<std::string_view, 8> names = {"",          "SHUT",        "PONG",       "REQ_PAGES_ID",
                                                   "REQ_PAGES", "RECV_BITMAP", "RESUME_ACK", "SWITCHOVER_ACK"};
// Exact lengths; of REQ_PAGES_ID and RECV_BITMAP, which end with a name, the part before the name's length.
constexpr std::array<std::uint16_t, 8> lengths = {0, 4, 4, 12, 12, 0, 4, 0};

constexpr bool ends_with_name(std::uint16_t number) noexcept {
  return number == type::req_pages_id || number == type::recv_bitmap;
}

constexpr std::uint32_t resume_ack_value = 1;

Error refused(std::uint16_t number, std::string_view what) {
  return wire_error(fmt::format("return path: {}: {}", names[number], what));
}

Result<ReturnMessage> request_of(std::uint16_t number, ByteView payload, std::string_view block) {
  RequestPages out;
  out.start = load_be<std::uint64_t>(payload.data());
  out.length = load_be<std::uint32_t>(payload.data() + 8);
  out.block = block;
  // 4096 is the host page of x86; the block's own page size is the caller's to check.
  if (out.length == 0 || out.start % page_bytes != 0 || out.length % page_bytes != 0) {
    return refused(number, fmt::format("range {:#x}+{:#x} is not of whole pages", out.start, out.length));
  }
  return ReturnMessage(std::move(out));
}

Result<ReturnMessage> message_of(std::uint16_t number, ByteView payload) {
  std::string_view block;
  if (ends_with_name(number)) {
    CodecCursor in(payload);
    ByteView fixed;
    if (!in.bytes(lengths[number], fixed) || !in.str8(block) || in.position() != payload.size()) {
      return refused(number, fmt::format("length {} is wrong", payload.size()));
    }
    if (block.empty()) return refused(number, "the block name is empty");
  }
  switch (number) {
    case type::shut:
      return ReturnMessage(Shut{load_be<std::uint32_t>(payload.data())});
    case type::pong:
      return ReturnMessage(Pong{load_be<std::uint32_t>(payload.data())});
    case type::req_pages_id:
    case type::req_pages:
      return request_of(number, payload, block);
    case type::recv_bitmap:
      return ReturnMessage(RecvBitmap{std::string(block)});
    case type::resume_ack: {
      const auto value = load_be<std::uint32_t>(payload.data());
      if (value != resume_ack_value) return refused(number, fmt::format("value {} is not 1", value));
      return ReturnMessage(ResumeAck{});
    }
    default:
      return ReturnMessage(SwitchoverAck{});
  }
}

std::uint16_t number_of(const ReturnMessage& message) noexcept {
  if (const auto* request = std::get_if<RequestPages>(&message)) {
    return request->block.empty() ? type::req_pages : type::req_pages_id;
  }
  if (std::holds_alternative<Shut>(message)) return type::shut;
  if (std::holds_alternative<Pong>(message)) return type::pong;
  if (std::holds_alternative<RecvBitmap>(message)) return type::recv_bitmap;
  return std::holds_alternative<ResumeAck>(message) ? type::resume_ack : type::switchover_ack;
}

struct PayloadWriter {
  ByteWriter& out;
  void operator()(const Shut& shut) const { out.u32(shut.value); }
  void operator()(const Pong& pong) const { out.u32(pong.value); }
  void operator()(const RequestPages& request) const {
    out.u64(request.start).u32(request.length);
    if (!request.block.empty()) out.str8(request.block);
  }
  void operator()(const RecvBitmap& bitmap) const { out.str8(bitmap.block); }
  void operator()(const ResumeAck&) const { out.u32(resume_ack_value); }
  void operator()(const SwitchoverAck&) const {}
};

}  // namespace

std::string_view return_message_name(const ReturnMessage& message) noexcept { return names[number_of(message)]; }

Decoded<ReturnMessage> decode_return_message(ByteView available) {
  CodecCursor in(available);
  const auto more = [&in] { return Decoded<ReturnMessage>::need_more(in.needed()); };
  std::uint16_t number = 0;
  std::uint16_t length = 0;
  if (!in.u16(number)) return more();
  if (number == 0 || number >= names.size()) {
    return wire_error(fmt::format("return path: message of type {:#x} is unknown", number));
  }
  if (!in.u16(length)) return more();
  const bool fits = ends_with_name(number) ? length > lengths[number] : length == lengths[number];
  if (!fits || length > limits::return_path_payload) return refused(number, fmt::format("length {} is wrong", length));
  ByteView payload;
  if (!in.bytes(length, payload)) return more();
  auto message = message_of(number, payload);
  if (!message) return std::move(message).error();
  return Decoded<ReturnMessage>::ready(std::move(*message), in.position());
}

void encode_return_message(ByteWriter& out, const ReturnMessage& message) {
  ByteWriter payload;
  std::visit(PayloadWriter{payload}, message);
  out.u16(number_of(message)).u16(static_cast<std::uint16_t>(payload.size())).bytes(payload.view());
}

std::size_t received_bitmap_bytes(std::uint64_t pages) noexcept {
  return static_cast<std::size_t>((pages + 63) / 64 * 8);
}

Decoded<ByteView> decode_received_bitmap(ByteView available, std::uint64_t pages) {
  CodecCursor in(available);
  const auto more = [&in] { return Decoded<ByteView>::need_more(in.needed()); };
  const std::size_t expected = received_bitmap_bytes(pages);
  std::uint64_t size = 0;
  if (!in.u64(size)) return more();
  if (size != expected) {
    return refused(type::recv_bitmap,
                   fmt::format("bitmap of {} bytes, {} are due for {} pages", size, expected, pages));
  }
  ByteView bitmap;
  std::uint64_t end = 0;
  // Bitmap and end mark are asked for together: one wait.
  if (!in.has(expected + sizeof end)) return more();
  in.bytes(expected, bitmap);
  in.u64(end);
  if (end != received_bitmap_end) return refused(type::recv_bitmap, fmt::format("end mark {:#x} is wrong", end));
  for (std::uint64_t bit = pages; bit < expected * std::uint64_t{8}; ++bit) {
    const auto byte = static_cast<unsigned>(bitmap[static_cast<std::size_t>(bit / 8)]);
    if ((byte >> (bit % 8) & 1) != 0) return refused(type::recv_bitmap, "a page behind the block's end is marked");
  }
  return Decoded<ByteView>::ready(bitmap, in.position());
}

void encode_received_bitmap(ByteWriter& out, ByteView bitmap) {
  out.u64(bitmap.size()).bytes(bitmap).u64(received_bitmap_end);
}

}  // namespace migrationd::stream
