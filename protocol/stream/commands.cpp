// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/commands.hpp"

#include <fmt/format.h>

#include <array>

namespace migrationd::stream {

namespace {

using namespace command;

constexpr std::size_t discard_range_bytes = 16;
constexpr std::size_t command_payload_max = 0xffff;

constexpr std::array<std::string_view, std::variant_size_v<Command>> names = {
    "OPEN_RETURN_PATH", "PING",        "POSTCOPY_ADVISE", "POSTCOPY_LISTEN", "POSTCOPY_RUN",    "POSTCOPY_RAM_DISCARD",
    "PACKAGED",         "ENABLE_COLO", "POSTCOPY_RESUME", "RECV_BITMAP",     "SWITCHOVER_START"};

// Alternatives stand in the variant in the order of their numbers on the wire, from 1.
constexpr std::uint16_t number_of(const Command& command) noexcept {
  return static_cast<std::uint16_t>(command.index() + 1);
}
static_assert(std::is_same_v<std::variant_alternative_t<10, Command>, SwitchoverStart>, "COMMAND 11");
static_assert(std::is_same_v<std::variant_alternative_t<6, Command>, Packaged>, "COMMAND 7");

// Length of the payload: exact, or 0 and `variable`.
struct Shape {
  std::uint16_t length;
  bool variable;
};
constexpr std::array<Shape, names.size()> shapes = {{{0, false},
                                                     {4, false},
                                                     {16, true},
                                                     {0, false},
                                                     {0, false},
                                                     {0, true},
                                                     {4, false},
                                                     {0, false},
                                                     {0, false},
                                                     {0, true},
                                                     {0, false}}};

Error refused(std::uint16_t number, std::string_view what) {
  return wire_error(fmt::format("command {}: {}", names[number - 1u], what));
}

Error wrong_length(std::uint16_t number, std::size_t length) {
  return refused(number, fmt::format("length {} is wrong", length));
}

Result<void> read_discard(ByteView payload, Command& command) {
  constexpr std::uint16_t number = 6;
  CodecCursor in(payload);
  PostcopyRamDiscard out;
  std::uint8_t format = 0;
  std::uint8_t terminator = 0;
  std::string_view block;
  if (!in.u8(format) || !in.str8(block) || !in.u8(terminator)) return wrong_length(number, payload.size());
  const std::size_t ranges = payload.size() - in.position();
  if (format != 0) return refused(number, fmt::format("version {} is unknown", format));
  if (terminator != 0) return refused(number, "the block name is not terminated");
  if (block.empty()) return refused(number, "the block name is empty");
  if (ranges == 0 || ranges % discard_range_bytes != 0) return wrong_length(number, payload.size());
  out.block = block;
  out.ranges.resize(ranges / discard_range_bytes);
  for (auto& range : out.ranges) {
    in.u64(range.start);
    in.u64(range.length);
  }
  command = std::move(out);
  return {};
}

Result<void> read_advise(ByteView payload, Command& command) {
  PostcopyAdvise out;
  if (!payload.empty() && payload.size() != 16) return wrong_length(3, payload.size());
  if (!payload.empty()) {
    out.sizes =
        PostcopyAdvise::Sizes{load_be<std::uint64_t>(payload.data()), load_be<std::uint64_t>(payload.data() + 8)};
  }
  command = out;
  return {};
}

Result<void> read_recv_bitmap(ByteView payload, Command& command) {
  CodecCursor in(payload);
  std::string_view block;
  if (!in.str8(block) || in.position() != payload.size()) return wrong_length(10, payload.size());
  if (block.empty()) return refused(10, "the block name is empty");
  command = RecvBitmap{std::string(block)};
  return {};
}

// The payload has the length its shape asks for.
Result<void> read_command(std::uint16_t number, ByteView payload, Command& command) {
  switch (number) {
    case 1:
      command = OpenReturnPath{};
      return {};
    case 2:
      command = Ping{load_be<std::uint32_t>(payload.data())};
      return {};
    case 3:
      return read_advise(payload, command);
    case 4:
      command = PostcopyListen{};
      return {};
    case 5:
      command = PostcopyRun{};
      return {};
    case 6:
      return read_discard(payload, command);
    case 7:
      command = Packaged{load_be<std::uint32_t>(payload.data())};
      return {};
    case 8:
      command = EnableColo{};
      return {};
    case 9:
      command = PostcopyResume{};
      return {};
    case 10:
      return read_recv_bitmap(payload, command);
    default:
      command = SwitchoverStart{};
      return {};
  }
}

struct PayloadWriter {
  ByteWriter& out;
  void operator()(const Ping& ping) const { out.u32(ping.value); }
  void operator()(const PostcopyAdvise& advise) const {
    if (advise.sizes) out.u64(advise.sizes->page_sizes).u64(advise.sizes->target_page);
  }
  void operator()(const PostcopyRamDiscard& discard) const {
    out.u8(0).str8(discard.block).u8(0);
    for (const auto& range : discard.ranges) out.u64(range.start).u64(range.length);
  }
  void operator()(const Packaged& packaged) const { out.u32(packaged.length); }
  void operator()(const RecvBitmap& request) const { out.str8(request.block); }
  template <class Empty>
  void operator()(const Empty&) const {}
};

}  // namespace

std::string_view command_name(const Command& command) noexcept { return names[command.index()]; }

Decoded<Command> decode_command(ByteView available) {
  CodecCursor in(available);
  const auto more = [&in] { return Decoded<Command>::need_more(in.needed()); };
  std::uint8_t first = 0;
  std::uint16_t number = 0;
  std::uint16_t length = 0;
  if (!in.u8(first)) return more();
  if (first != mark::command) return wire_error(fmt::format("command: byte {:#04x} where 0x08 is due", first));
  if (!in.u16(number)) return more();
  if (number == 0 || number > names.size()) return wire_error(fmt::format("command {:#x} is unknown", number));
  if (!in.u16(length)) return more();
  // A wrong length is refused before its payload is waited for.
  const Shape& shape = shapes[number - 1u];
  if (!shape.variable && length != shape.length) return wrong_length(number, length);
  if (number == 3 && length != 0 && length != 16) return wrong_length(number, length);
  ByteView payload;
  if (!in.bytes(length, payload)) return more();
  Command command;
  if (auto read = read_command(number, payload, command); !read) return std::move(read).error();
  return Decoded<Command>::ready(std::move(command), in.position());
}

void encode_command(ByteWriter& out, const Command& command) {
  ByteWriter payload;
  std::visit(PayloadWriter{payload}, command);
  out.u8(mark::command).u16(number_of(command)).u16(static_cast<std::uint16_t>(payload.size())).bytes(payload.view());
}

std::size_t discard_ranges_max(std::string_view block) noexcept {
  return (command_payload_max - 3 - block.size()) / discard_range_bytes;
}

}  // namespace migrationd::stream
