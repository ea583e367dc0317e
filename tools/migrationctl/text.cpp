// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/text.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>

namespace migrationd::ctl {

std::string size_text(std::uint64_t bytes) {
  constexpr std::array<const char*, 7> units = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  // 999.5 would be printed as four digits.
  while (value >= 999.5 && unit + 1 < units.size()) {
    value /= 1024;
    ++unit;
  }
  const int digits = value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  return fmt::format("{:.{}f} {}", value, digits, units[unit]);
}

std::string duration_text(std::uint64_t milliseconds) {
  if (milliseconds < 1000) return fmt::format("{} ms", milliseconds);
  const std::uint64_t seconds = milliseconds / 1000;
  if (seconds < 60) return fmt::format("{}.{} s", seconds, milliseconds % 1000 / 100);
  if (seconds < 3600) return fmt::format("{} min {} s", seconds / 60, seconds % 60);
  return fmt::format("{} h {} min", seconds / 3600, seconds % 3600 / 60);
}

Result<std::uint64_t> parse_number(std::string_view text) {
  const Error bad = plan_error(fmt::format("'{}' is not a number (like 12, 64M, 1.5G or 0x1000)", printable(text)));
  const char* const last = text.data() + text.size();
  if (text.starts_with("0x")) {
    std::uint64_t value = 0;
    const auto [end, failure] = std::from_chars(text.data() + 2, last, value, 16);
    if (failure != std::errc() || end != last) return bad;
    return value;
  }
  std::uint64_t whole = 0;
  const auto [end, failure] = std::from_chars(text.data(), last, whole);
  if (failure != std::errc()) return bad;
  if (end == last) return whole;
  double value = 0;
  const auto [unit_start, float_failure] = std::from_chars(text.data(), last, value, std::chars_format::fixed);
  std::string_view unit(unit_start, static_cast<std::size_t>(last - unit_start));
  if (unit.ends_with("iB")) unit.remove_suffix(2);
  constexpr std::string_view units = "KMGTPE";
  const auto at = unit.size() == 1 ? units.find(unit[0] >= 'a' ? static_cast<char>(unit[0] - 'a' + 'A') : unit[0])
                                   : std::string_view::npos;
  if (float_failure != std::errc() || at == std::string_view::npos) return bad;
  const double bytes = std::ldexp(value, 10 * (static_cast<int>(at) + 1));
  if (bytes >= 18446744073709551616.0) return bad;
  return static_cast<std::uint64_t>(bytes);
}

Result<std::pair<std::string, std::string>> split_assignment(std::string_view text) {
  const auto equals = text.find('=');
  if (equals == std::string_view::npos || equals == 0)
    return plan_error(fmt::format("'{}' is not NAME=VALUE", printable(text)));
  return std::pair(std::string(text.substr(0, equals)), std::string(text.substr(equals + 1)));
}

Result<bool> parse_switch(std::string_view text) {
  if (text == "on" || text == "true" || text == "yes") return true;
  if (text == "off" || text == "false" || text == "no") return false;
  return plan_error(fmt::format("'{}' is neither on nor off", printable(text)));
}

Result<Json> parse_value(std::string_view text, const Json* current) {
  if (current != nullptr && current->is_boolean()) {
    MD_TRY(const bool value, parse_switch(text));
    return Json(value);
  }
  if (current != nullptr && current->is_number()) {
    MD_TRY(const std::uint64_t value, parse_number(text));
    return Json(value);
  }
  if (current != nullptr && current->is_string()) return Json(std::string(text));
  Json value = Json::parse(text, nullptr, false);
  return value.is_discarded() ? Json(std::string(text)) : value;
}

}  // namespace migrationd::ctl
