// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/parameters.hpp"

#include "protocol/qmp/decode.hpp"
#include "protocol/qmp/encode.hpp"
#include "protocol/qmp/hmp.hpp"
#include "protocol/qmp/parameter_codec.hpp"
#include "protocol/qmp/parameter_rows.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

namespace migrationd::qmp {

std::span<const ParameterRow> parameter_table() {
  static constexpr auto rows = std::apply(
      [](const auto&... row) {
        return std::array<ParameterRow, parameter_count>{
            ParameterRow{row.name, row.type, row.unit, row.accepts, row.effect, row.text}...};
      },
      parameter_rows);
  return rows;
}

// --- JSON -----------------------------------------------------------------------------------------------

bool decode_object(DecodeState& state, const Json& object, ParameterPatch& out) {
  KnownMembers known;
  const bool ok = all_parameters([&](const auto& row, std::size_t index) {
    known.names.push_back(row.name);
    const auto found = object.find(row.name);
    if (found == object.end()) return true;
    out.given.set(index);
    state.enter(row.name);
    auto& field = out.values.*row.pointer;
    using T = std::remove_reference_t<decltype(field)>;
    bool decoded = false;
    if constexpr (std::is_same_v<T, std::string>) {
      StrOrNull text;
      decoded = decode_value(state, *found, text);
      field = text.value.value_or("");
    } else if constexpr (is_optional<T>) {
      decoded = decode_value(state, *found, field.emplace());
    } else {
      decoded = decode_value(state, *found, field);
    }
    if (decoded) state.leave();
    return decoded;
  });
  return ok && check_unexpected(state, object, known);
}

OrderedJson encode_object(const MigrationParameters& parameters) {
  OrderedJson out = OrderedJson::object();
  all_parameters([&](const auto& row, std::size_t) {
    const auto& field = parameters.*row.pointer;
    if constexpr (is_optional<std::remove_cvref_t<decltype(field)>>) {
      if (field) out[std::string(row.name)] = encode(*field);
    } else {
      out[std::string(row.name)] = encode(field);
    }
    return true;
  });
  return out;
}

// --- rules ----------------------------------------------------------------------------------------------

namespace {

std::string underscored(std::string_view name) {
  // QEMU's one exception (qmp.md 10.2).
  if (name == "x-vcpu-dirty-limit-period") return std::string(name);
  std::string out(name);
  std::replace(out.begin(), out.end(), '-', '_');
  return out;
}

template <class Row>
QmpError out_of_range(const Row& row) {
  if (row.name == "vcpu-dirty-limit") return QmpError("Parameter 'vcpu_dirty_limit' must be greater than 1 MB/s");
  return QmpError(fmt::format("Parameter '{}' expects {}", underscored(row.name), row.accepts));
}

QmpResult<> check_ranges(const MigrationParameters& wanted) {
  std::optional<QmpError> error;
  all_parameters([&](const auto& row, std::size_t) {
    if (row.valid == nullptr || row.valid(wanted)) return true;
    error = out_of_range(row);
    return false;
  });
  if (error) return *error;
  return {};
}

QmpError bad_mapping(std::string_view what) {
  return QmpError(fmt::format("Invalid mapping given for block-bitmap-mapping: {}", what));
}

QmpResult<> check_mapping(const std::vector<BitmapNodeAlias>& mapping) {
  std::set<std::string_view> names;
  std::set<std::string_view> aliases;
  for (const auto& node : mapping) {
    if (node.alias.empty())
      return bad_mapping(fmt::format("The node alias '{}' is not well-formed", printable(node.alias)));
    if (!names.insert(node.node_name).second)
      return bad_mapping(fmt::format("The node name '{}' is mapped twice", printable(node.node_name)));
    if (!aliases.insert(node.alias).second)
      return bad_mapping(fmt::format("The node alias '{}' is used twice", printable(node.alias)));
  }
  return {};
}

// On the new values: QEMU looks at those in force, so that a call that would mend matters is refused too.
QmpResult<> check_against(const Capabilities& capabilities, const MigrationParameters& wanted) {
  const bool changes_bytes = wanted.multifd_compression != MultifdCompression::none || !wanted.tls_creds.empty();
  if (!changes_bytes) return {};
  if (capabilities.has(Capability::zero_copy_send))
    return QmpError("Zero copy only available for non-compressed non-TLS multifd migration");
  if (capabilities.has(Capability::mapped_ram))
    return QmpError("Mapped-ram only available for non-compressed non-TLS multifd migration");
  return {};
}

}  // namespace

QmpResult<MigrationParameters> apply(const MigrationParameters& current, const ParameterPatch& patch,
                                     const Capabilities& capabilities) {
  MigrationParameters wanted = current;
  all_parameters([&](const auto& row, std::size_t index) {
    if (patch.given.test(index)) wanted.*row.pointer = patch.values.*row.pointer;
    return true;
  });
  MD_CHECK(check_ranges(wanted));
  if (wanted.block_bitmap_mapping) MD_CHECK(check_mapping(*wanted.block_bitmap_mapping));
  MD_CHECK(check_against(capabilities, wanted));
  return wanted;
}

// --- as the human monitor gives them --------------------------------------------------------------------

namespace {

std::optional<bool> parse_switch(std::string_view text) {
  for (const auto on : {"on", "yes", "true", "y"})
    if (text == on) return true;
  for (const auto off : {"off", "no", "false", "n"})
    if (text == off) return false;
  return std::nullopt;
}

// Decimal or 0x hex, an optional minus; nothing for anything else.
std::optional<Json> parse_integer(std::string_view text) {
  const bool negative = text.starts_with('-');
  auto digits = text.substr(negative ? 1 : 0);
  const bool is_hex = digits.starts_with("0x") || digits.starts_with("0X");
  if (is_hex) digits.remove_prefix(2);
  std::uint64_t value = 0;
  const auto* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, value, is_hex ? 16 : 10);
  if (digits.empty() || parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  if (!negative) return Json(value);
  if (value > std::uint64_t{1} << 63) return std::nullopt;
  return Json(static_cast<std::int64_t>(0 - value));
}

template <class Row>
QmpResult<Json> number_from_text(const Row& row, std::string_view text) {
  constexpr std::uint64_t mebibyte = std::uint64_t{1} << 20;
  if (row.hmp == HmpNumber::bandwidth) {
    const auto size = parse_size(text, mebibyte);
    if (!size || *size > INT64_MAX) return QmpError(fmt::format("Invalid size {}", text));
    return Json(*size);
  }
  if (row.hmp == HmpNumber::suffixed) {
    const auto size = parse_size(text, 1);
    if (size) return Json(*size);
    return QmpError(
        fmt::format("Parameter '{}' expects a non-negative number below 2^64\n"
                    "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n"
                    "and exabytes, respectively.",
                    row.name));
  }
  // Not a number: the decoder says what it expects.
  return parse_integer(text).value_or(Json(std::string(text)));
}

template <class Row>
QmpResult<Json> json_from_text(const Row& row, std::string_view text) {
  using T = typename Row::Type;
  if constexpr (is_optional<T>) {
    return QmpError(fmt::format("The {} parameter can only be set through QMP", row.name));
  } else if constexpr (std::is_same_v<T, bool>) {
    const auto state = parse_switch(text);
    if (!state) return QmpError(fmt::format("Parameter '{}' expects 'on' or 'off'", row.name));
    return Json(*state);
  } else if constexpr (std::is_integral_v<T>) {
    return number_from_text(row, text);
  } else {
    return Json(std::string(text));
  }
}

QmpError unknown_parameter(std::string_view name) { return QmpError(fmt::format("invalid parameter value: {}", name)); }

}  // namespace

QmpResult<ParameterPatch> parse_parameter(std::string_view name, std::string_view text) {
  QmpResult<Json> value = unknown_parameter(name);
  all_parameters([&](const auto& row, std::size_t) {
    if (row.name != name) return true;
    value = json_from_text(row, text);
    return false;
  });
  if (!value) return value.error();
  return decode<ParameterPatch>(Json::object({{std::string(name), *value}}));
}

QmpResult<ParameterPatch> parse_parameter(std::string_view name, const Json& value) {
  const auto rows = parameter_table();
  const auto known = std::any_of(rows.begin(), rows.end(), [&](const auto& row) { return row.name == name; });
  if (!known) return unknown_parameter(name);
  if (value.is_string()) return parse_parameter(name, std::string_view(value.get_ref<const std::string&>()));
  return decode<ParameterPatch>(Json::object({{std::string(name), value}}));
}

}  // namespace migrationd::qmp
