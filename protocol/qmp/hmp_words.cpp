// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/hmp_words.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

namespace migrationd::qmp {

namespace {

bool is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

void WordReader::skip_blanks() {
  while (!rest_.empty() && is_blank(rest_.front())) rest_.remove_prefix(1);
}

bool WordReader::at_end() {
  skip_blanks();
  return rest_.empty();
}

bool WordReader::at_blank() const { return rest_.empty() || is_blank(rest_.front()); }

std::string WordReader::take_name() {
  skip_blanks();
  std::size_t length = 0;
  while (length < rest_.size() && !is_blank(rest_[length])) ++length;
  std::string out(rest_.substr(0, length));
  rest_.remove_prefix(length);
  return out;
}

std::optional<std::string> WordReader::take() {
  skip_blanks();
  if (rest_.empty()) return std::nullopt;
  if (rest_.front() != '"') return take_name();
  rest_.remove_prefix(1);
  std::string out;
  while (!rest_.empty() && rest_.front() != '"') {
    char c = rest_.front();
    rest_.remove_prefix(1);
    if (c == '\\') {
      if (rest_.empty()) return std::nullopt;
      c = rest_.front();
      rest_.remove_prefix(1);
      if (c == 'n') {
        c = '\n';
      } else if (c == 'r') {
        c = '\r';
      } else if (c != '\\' && c != '\'' && c != '"') {
        return std::nullopt;
      }
    }
    out += c;
  }
  if (rest_.empty()) return std::nullopt;
  rest_.remove_prefix(1);
  return out;
}

bool WordReader::at_option() {
  skip_blanks();
  return rest_.size() > 1 && rest_.front() == '-' && !is_blank(rest_[1]);
}

char WordReader::take_option() {
  const char option = rest_[1];
  rest_.remove_prefix(2);
  return option;
}

Json split_commas(std::string_view text) {
  Json out = Json::array();
  while (!text.empty()) {
    const auto comma = std::min(text.find(','), text.size());
    out.push_back(std::string(text.substr(0, comma)));
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return out;
}

namespace {

// Up to the next single comma; ",," stands for one.
std::string take_part(std::string_view& text) {
  std::string out;
  while (!text.empty()) {
    if (text.front() == ',') {
      if (!text.starts_with(",,")) break;
      text.remove_prefix(1);
    }
    out += text.front();
    text.remove_prefix(1);
  }
  if (!text.empty()) text.remove_prefix(1);
  return out;
}

// The keys of objects that are switches; the line carries no types, so they are known by name.
QmpResult<Json> typed_value(const std::string& key, const std::string& value) {
  constexpr std::array switches{"verify-peer", "sanity-check", "refresh", "loaded"};
  if (std::find(switches.begin(), switches.end(), key) != switches.end()) {
    if (value == "on" || value == "yes" || value == "true" || value == "y") return Json(true);
    if (value == "off" || value == "no" || value == "false" || value == "n") return Json(false);
    return QmpError(fmt::format("Parameter '{}' expects 'on' or 'off'", key));
  }
  if (key == "serial") {
    std::int64_t number = 0;
    const auto* end = value.data() + value.size();
    const auto parsed = std::from_chars(value.data(), end, number);
    if (parsed.ec == std::errc() && parsed.ptr == end) return Json(number);
  }
  return Json(value);
}

// "rules.0.match" into rules[0]["match"]. At most one list level with members, which is all that objects have.
QmpResult<> put(Json& object, const std::string& path, const std::string& value) {
  const auto first_dot = path.find('.');
  if (first_dot == std::string::npos) {
    MD_TRY(object[path], typed_value(path, value));
    return {};
  }
  const auto second_dot = path.find('.', first_dot + 1);
  const auto name = path.substr(0, first_dot);
  const auto index_text = path.substr(first_dot + 1, second_dot - first_dot - 1);
  constexpr std::size_t most_elements = 1024;
  std::size_t index = 0;
  const auto* end = index_text.data() + index_text.size();
  const auto parsed = std::from_chars(index_text.data(), end, index);
  const bool bad = second_dot == std::string::npos || parsed.ec != std::errc() || parsed.ptr != end;
  auto& list = object[name];
  if (bad || index > most_elements || !(list.is_null() || list.is_array()))
    return QmpError(fmt::format("Invalid parameter '{}'", path));
  if (list.is_null()) list = Json::array();
  // In order and without gaps, so that the list cannot be made long by a big index.
  if (index > list.size()) return QmpError(fmt::format("Parameter '{}.{}' missing", name, list.size()));
  if (index == list.size()) list.push_back(Json::object());
  const auto key = path.substr(second_dot + 1);
  MD_TRY(list[index][key], typed_value(key, value));
  return {};
}

}  // namespace

QmpResult<Json> parse_key_values(std::string_view text, std::string_view implied) {
  Json out = Json::object();
  bool first = true;
  while (!text.empty()) {
    const auto part = take_part(text);
    const auto equals = part.find('=');
    if (equals == std::string::npos) {
      if (!first) return QmpError(fmt::format("Expected '=' after parameter '{}'", part));
      out[std::string(implied)] = part;
    } else {
      MD_CHECK(put(out, part.substr(0, equals), part.substr(equals + 1)));
    }
    first = false;
  }
  return out;
}

}  // namespace migrationd::qmp
