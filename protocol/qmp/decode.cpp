// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/decode.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::qmp {

bool DecodeState::fail(std::string text) {
  if (!error_) error_.emplace(std::move(text));
  return false;
}

std::string DecodeState::path(std::string_view member) const {
  std::string out;
  const auto append = [&out](std::string_view name) {
    if (!out.empty()) out += '.';
    out += name;
  };
  for (const auto& part : path_) {
    if (part.member.empty()) {
      out += fmt::format("[{}]", part.index);
    } else {
      append(part.member);
    }
  }
  if (!member.empty()) append(member);
  return out;
}

std::string DecodeState::bare() const {
  if (path_.empty() || path_.back().member.empty()) return "null";
  return std::string(path_.back().member);
}

bool DecodeState::missing(std::string_view member) {
  return fail(fmt::format("Parameter '{}' is missing", path(member)));
}

bool DecodeState::unexpected(std::string_view member) {
  // An empty name must still be shown as one.
  const auto shown = member.empty() ? path() + (path_.empty() ? "" : ".") : path(member);
  return fail(fmt::format("Parameter '{}' is unexpected", shown));
}

bool DecodeState::wrong_type(std::string_view expected) {
  return fail(fmt::format("Invalid parameter type for '{}', expected: {}", path(), expected));
}

bool DecodeState::expects(std::string_view what) {
  return fail(fmt::format("Parameter '{}' expects {}", path(), what));
}

bool DecodeState::expects_bare(std::string_view what) {
  return fail(fmt::format("Parameter '{}' expects {}", bare(), what));
}

bool DecodeState::unknown_value(const std::string& value) {
  return fail(fmt::format("Parameter '{}' does not accept value '{}'", bare(), value));
}

bool check_unexpected(DecodeState& state, const Json& object, const KnownMembers& known) {
  if (known.unread) return true;
  for (const auto& item : object.items()) {
    const bool asked = std::find(known.names.begin(), known.names.end(), item.key()) != known.names.end();
    if (!asked) return state.unexpected(item.key());
  }
  return true;
}

bool decode_signed(DecodeState& state, const Json& json, std::int64_t& out) {
  if (!json.is_number_integer()) return state.wrong_type("integer");
  if (json.is_number_unsigned() && !std::in_range<std::int64_t>(json.get<std::uint64_t>()))
    return state.wrong_type("integer");
  out = json.get<std::int64_t>();
  return true;
}

// Negative numbers wrap: QEMU stores max-bandwidth -1 as 18446744073709551615 (qmp.md 1.1). For the smaller widths
// the wrapped value is out of range, which gives their refusal.
bool decode_unsigned(DecodeState& state, const Json& json, std::uint64_t& out) {
  if (!json.is_number_integer()) return state.expects("uint64");
  out = json.is_number_unsigned() ? json.get<std::uint64_t>() : static_cast<std::uint64_t>(json.get<std::int64_t>());
  return true;
}

}  // namespace migrationd::qmp
