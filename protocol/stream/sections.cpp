// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/sections.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

namespace migrationd::stream {

namespace {

bool read_header(CodecCursor& in, SectionHeader& out) {
  std::string_view name;
  if (!in.u32(out.section_id) || !in.str8(name)) return false;
  if (!in.u32(out.instance_id) || !in.u32(out.version_id)) return false;
  out.name = name;
  return true;
}

void write_header(ByteWriter& out, std::uint8_t type, const SectionHeader& header) {
  out.u8(type).u32(header.section_id).str8(header.name).u32(header.instance_id).u32(header.version_id);
}

Decoded<Element> element_of_command(ByteView available) {
  auto command = decode_command(available);
  if (command.failed()) return std::move(command).error();
  if (command.needs_more()) return Decoded<Element>::need_more(command.needed());
  const std::size_t consumed = command.consumed();
  return Decoded<Element>::ready(std::move(command).value(), consumed);
}

std::string_view misplaced(std::uint8_t type) noexcept {
  switch (type) {
    case mark::subsection:
      return "a subsection outside of a section";
    case mark::description:
      return "a description before the end";
    case mark::configuration:
      return "a configuration section that is not the first";
    case mark::footer:
      return "a footer without a section";
    default:
      return "unknown";
  }
}

}  // namespace

Decoded<Element> decode_element(ByteView available) {
  CodecCursor in(available);
  const auto more = [&in] { return Decoded<Element>::need_more(in.needed()); };
  const auto ready = [&in](Element element) { return Decoded<Element>::ready(std::move(element), in.position()); };
  std::uint8_t type = 0;
  if (!in.u8(type)) return more();
  SectionHeader header;
  switch (type) {
    case mark::eof:
      return ready(EndOfStream{});
    case mark::section_start:
      if (!read_header(in, header)) return more();
      return ready(SectionStart{std::move(header)});
    case mark::section_full:
      if (!read_header(in, header)) return more();
      return ready(SectionFull{std::move(header)});
    case mark::section_part:
      if (!in.u32(header.section_id)) return more();
      return ready(SectionPart{header.section_id});
    case mark::section_end:
      if (!in.u32(header.section_id)) return more();
      return ready(SectionEnd{header.section_id});
    case mark::command:
      return element_of_command(available);
    default:
      return wire_error(fmt::format("element of type {:#04x}: {}", type, misplaced(type)));
  }
}

Decoded<Footer> decode_footer(ByteView available, std::uint32_t section_id, std::string_view name) {
  CodecCursor in(available);
  std::uint8_t type = 0;
  std::uint32_t id = 0;
  if (!in.u8(type)) return Decoded<Footer>::need_more(footer_bytes);
  if (type != mark::footer) {
    return wire_error(fmt::format("Missing section footer for {}: byte {:#04x}", printable(name), type));
  }
  if (!in.u32(id)) return Decoded<Footer>::need_more(footer_bytes);
  if (id != section_id) {
    return wire_error(fmt::format("Mismatched section id in footer for {}: read {:#x} expected {:#x}", printable(name),
                                  id, section_id));
  }
  return Decoded<Footer>::ready({}, in.position());
}

Decoded<std::uint32_t> decode_description_header(ByteView available) {
  CodecCursor in(available);
  std::uint8_t type = 0;
  std::uint32_t length = 0;
  if (!in.u8(type)) return Decoded<std::uint32_t>::need_more(description_header_bytes);
  if (type != mark::description) {
    return wire_error(fmt::format("Expected vmdescription section, but got {}", type));
  }
  if (!in.u32(length)) return Decoded<std::uint32_t>::need_more(description_header_bytes);
  if (length > limits::description_bytes) {
    return Error(ErrorKind::limit,
                 fmt::format("description of {} bytes, at most {} are taken", length, limits::description_bytes));
  }
  return Decoded<std::uint32_t>::ready(length, in.position());
}

void encode_section_start(ByteWriter& out, const SectionHeader& header) {
  write_header(out, mark::section_start, header);
}
void encode_section_full(ByteWriter& out, const SectionHeader& header) {
  write_header(out, mark::section_full, header);
}
void encode_section_part(ByteWriter& out, std::uint32_t section_id) { out.u8(mark::section_part).u32(section_id); }
void encode_section_end(ByteWriter& out, std::uint32_t section_id) { out.u8(mark::section_end).u32(section_id); }
void encode_footer(ByteWriter& out, std::uint32_t section_id) { out.u8(mark::footer).u32(section_id); }
void encode_eof(ByteWriter& out) { out.u8(mark::eof); }

void encode_device_section(ByteWriter& out, const DeviceSection& section) {
  out.u8(mark::section_full).u32(section.section_id).str8(section.name);
  out.u32(section.instance_id).u32(section.version_id).bytes(section.body);
  encode_footer(out, section.section_id);
}

void encode_description(ByteWriter& out, std::string_view text) {
  out.u8(mark::description).u32(static_cast<std::uint32_t>(text.size())).text(text);
}

}  // namespace migrationd::stream
