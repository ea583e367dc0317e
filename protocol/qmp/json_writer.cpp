// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/json_writer.hpp"

#include "protocol/qmp/utf8.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>

namespace migrationd::qmp {

namespace {

void append_escape(std::string& out, std::uint32_t code_point) {
  if (code_point > 0xffff) {
    code_point -= 0x10000;
    fmt::format_to(std::back_inserter(out), "\\u{:04X}\\u{:04X}", 0xd800 + (code_point >> 10),
                   0xdc00 + (code_point & 0x3ff));
  } else {
    fmt::format_to(std::back_inserter(out), "\\u{:04X}", code_point);
  }
}

void append_code_point(std::string& out, std::uint32_t code_point) {
  switch (code_point) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\b':
      out += "\\b";
      return;
    case '\f':
      out += "\\f";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      break;
  }
  if (code_point >= 0x20 && code_point < 0x7f) {
    out += static_cast<char>(code_point);
  } else {
    append_escape(out, code_point);
  }
}

void append_double(std::string& out, double value) {
  if (std::isnan(value)) value = 0;
  if (std::isinf(value)) value = std::copysign(std::numeric_limits<double>::max(), value);
  fmt::format_to(std::back_inserter(out), "{:.17g}", value);
}

template <class J>
void append_value(std::string& out, const J& value) {
  switch (value.type()) {
    case J::value_t::object: {
      out += '{';
      bool first = true;
      for (const auto& item : value.items()) {
        if (!std::exchange(first, false)) out += ", ";
        append_quoted(out, item.key());
        out += ": ";
        append_value(out, item.value());
      }
      out += '}';
      return;
    }
    case J::value_t::array: {
      out += '[';
      bool first = true;
      for (const auto& element : value) {
        if (!std::exchange(first, false)) out += ", ";
        append_value(out, element);
      }
      out += ']';
      return;
    }
    case J::value_t::string:
      append_quoted(out, value.template get_ref<const std::string&>());
      return;
    case J::value_t::boolean:
      out += value.template get<bool>() ? "true" : "false";
      return;
    case J::value_t::number_integer:
      out += fmt::to_string(value.template get<std::int64_t>());
      return;
    case J::value_t::number_unsigned:
      out += fmt::to_string(value.template get<std::uint64_t>());
      return;
    case J::value_t::number_float:
      append_double(out, value.template get<double>());
      return;
    case J::value_t::null:
    case J::value_t::binary:
    case J::value_t::discarded:
      out += "null";
      return;
  }
}

}  // namespace

void append_quoted(std::string& out, std::string_view text) {
  out += '"';
  while (!text.empty()) {
    const auto decoded = decode_utf8(text);
    append_code_point(out, decoded.code_point.value_or(0xfffd));
    text.remove_prefix(decoded.length);
  }
  out += '"';
}

std::string write_json(const OrderedJson& value) {
  std::string out;
  append_value(out, value);
  return out;
}

std::string write_json(const Json& value) {
  std::string out;
  append_value(out, value);
  return out;
}

std::string write_line(const OrderedJson& value) {
  auto out = write_json(value);
  out += "\r\n";
  return out;
}

}  // namespace migrationd::qmp
