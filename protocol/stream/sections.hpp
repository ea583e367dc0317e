// SPDX-License-Identifier: Apache-2.0
//
// What lies between configuration and end of a stream: sections, their footers, commands, EOF.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/commands.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/layout.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>

namespace migrationd::stream {

struct SectionHeader {
  std::uint32_t section_id = 0;  // the source's choice, unique in the stream
  std::string name;              // "idstr"
  std::uint32_t instance_id = 0;
  std::uint32_t version_id = 0;
  bool operator==(const SectionHeader&) const = default;
};

// One FULL section: a device's state, ready for the wire again.
struct DeviceSection {
  std::uint32_t section_id = 0;
  std::string name;
  std::uint32_t instance_id = 0;
  std::uint32_t version_id = 0;
  Bytes body;          // behind version_id, before the footer
  bool early = false;  // sent between START ram and the first PART
  bool operator==(const DeviceSection&) const = default;
};

struct SectionStart {
  SectionHeader header;
};
struct SectionPart {
  std::uint32_t section_id = 0;
};
struct SectionEnd {
  std::uint32_t section_id = 0;
};
struct SectionFull {
  SectionHeader header;
};
struct EndOfStream {};

// The head of an element: consumed() ends where the section's body begins, or behind the whole command.
using Element = std::variant<SectionStart, SectionPart, SectionEnd, SectionFull, Command, EndOfStream>;
Decoded<Element> decode_element(ByteView available);

// The five bytes behind a body; refuses another byte than 7e and another id.
struct Footer {};
Decoded<Footer> decode_footer(ByteView available, std::uint32_t section_id, std::string_view name);

// 06 and the length of the text (0..limits::description_bytes), directly after EOF.
Decoded<std::uint32_t> decode_description_header(ByteView available);

void encode_section_start(ByteWriter& out, const SectionHeader& header);
void encode_section_full(ByteWriter& out, const SectionHeader& header);
void encode_section_part(ByteWriter& out, std::uint32_t section_id);
void encode_section_end(ByteWriter& out, std::uint32_t section_id);
void encode_footer(ByteWriter& out, std::uint32_t section_id);
void encode_eof(ByteWriter& out);
// Header, body and footer: byte for byte what was read.
void encode_device_section(ByteWriter& out, const DeviceSection& section);
// 06, length, text. An empty text is the dummy that QEMU takes when there is no description.
void encode_description(ByteWriter& out, std::string_view text);

}  // namespace migrationd::stream
