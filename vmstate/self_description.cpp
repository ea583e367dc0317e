// SPDX-License-Identifier: Apache-2.0
#include "vmstate/self_description.hpp"

#include <fmt/format.h>

#include <array>

namespace migrationd::vmstate {

// Written out: clang 14 fails on two defaulted comparisons that need each other.
bool Layout::operator==(const Layout& other) const {
  return name == other.name && version == other.version && fields == other.fields && subsections == other.subsections;
}

bool FieldLayout::operator==(const FieldLayout& other) const {
  return name == other.name && type == other.type && size == other.size && array_length == other.array_length &&
         index == other.index && nested == other.nested;
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\u{:04x}", byte);
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
  return out;
}

namespace {

std::string field_json(const FieldLayout& field) {
  std::string out = "{\"name\": " + json_string(field.name);
  if (field.array_length > 1) out += fmt::format(", \"array_len\": {}", field.array_length);
  if (field.index) out += fmt::format(", \"index\": {}", *field.index);
  out += ", \"type\": " + json_string(field.type);
  // Views and structs with a version of their own have their members directly in the field.
  if (!field.nested.empty() && field.type == "struct") {
    out += ", \"struct\": {" + json_members(field.nested.front()) + "}";
  } else if (!field.nested.empty()) {
    out += ", " + json_members(field.nested.front());
  }
  out += fmt::format(", \"size\": {}}}", field.size);
  return out;
}

}  // namespace

std::string json_members(const Layout& layout) {
  std::string out =
      fmt::format("\"vmsd_name\": {}, \"version\": {}, \"fields\": [", json_string(layout.name), layout.version);
  for (std::size_t i = 0; i < layout.fields.size(); ++i) {
    if (i > 0) out += ", ";
    out += field_json(layout.fields[i]);
  }
  out += "]";
  if (layout.subsections.empty()) return out;
  out += ", \"subsections\": [";
  for (std::size_t i = 0; i < layout.subsections.size(); ++i) {
    if (i > 0) out += ", ";
    out += "{" + json_members(layout.subsections[i]) + "}";
  }
  out += "]";
  return out;
}

namespace {

// Whether a byte of the big-endian length behind its last zero byte is '{'. The 0x06 before it is never zero, so
// a length without zero bytes is searched from its first byte on.
bool hides_the_text(std::uint32_t length) {
  std::array<std::byte, 4> wire{};
  store_be(wire.data(), length);
  bool brace = false;
  for (const std::byte byte : wire) {
    if (byte == std::byte{0}) brace = false;
    if (byte == std::byte{'{'}) brace = true;
  }
  return brace;
}

}  // namespace

std::size_t description_padding(std::size_t length) {
  std::size_t padding = 0;
  while (hides_the_text(static_cast<std::uint32_t>(length + padding))) ++padding;
  return padding;
}

}  // namespace migrationd::vmstate
