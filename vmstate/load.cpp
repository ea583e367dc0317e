// SPDX-License-Identifier: Apache-2.0
//
// Loading. A subsection is recognised by looking ahead: marker, a name long enough, the owner's name as its
// prefix. Anything else is not ours and stays unread, which is what lets the byte 0x05 behind an inner struct
// start a subsection of an outer one.
#include "vmstate/engine.hpp"

#include <fmt/format.h>

#include <bitset>
#include <optional>

namespace migrationd::vmstate {
namespace {

// A version below the minimum that the device still has a reader for. That reader is all there is: no hooks, no fields,
// no subsections.
bool wants_old_loader(const Description& table, std::uint32_t version) {
  if (table.load_old == nullptr) return false;
  const auto incoming = static_cast<std::int32_t>(version);
  return incoming >= static_cast<std::int32_t>(table.minimum_version_old) &&
         incoming < static_cast<std::int32_t>(table.minimum_version);
}

Result<void> check_version(const Description& table, std::uint32_t version) {
  const auto incoming = static_cast<std::int32_t>(version);
  const auto newest = static_cast<std::int32_t>(table.version);
  const auto oldest = static_cast<std::int32_t>(table.minimum_version);
  if (incoming > newest) {
    return wire_error(
        fmt::format("{}: incoming version_id {} is too new for local version_id {}", table.name, incoming, newest));
  }
  if (incoming < oldest) {
    return wire_error(fmt::format("{}: incoming version_id {} is too old for local minimum version_id  {}", table.name,
                                  incoming, oldest));
  }
  return {};
}

// The name of the subsection of `owner` that starts here, if one does. Nothing is consumed.
std::optional<std::string_view> peek_subsection(std::string_view owner, const ByteReader& in) {
  const ByteView rest = in.rest();
  if (rest.size() < 2 || rest[0] != std::byte{subsection_marker}) return std::nullopt;
  const auto length = std::to_integer<std::size_t>(rest[1]);
  if (length < owner.size() + 1 || rest.size() < 2 + length) return std::nullopt;
  const std::string_view name = as_text(rest.subspan(2, length));
  if (name.substr(0, owner.size()) != owner) return std::nullopt;
  return name;
}

Result<std::size_t> find_part(const Description& table, std::string_view name) {
  for (std::size_t i = 0; i < table.parts.size(); ++i) {
    if (table.parts[i]->name == name) return i;
  }
  return wire_error(fmt::format("unknown subsection '{}'", printable(name)));
}

Result<void> load_subsections(const Description& table, void* object, ByteReader& in) {
  std::bitset<table_subsections> seen;
  while (const auto name = peek_subsection(table.name, in)) {
    MD_TRY(const std::size_t at, find_part(table, *name));
    if (seen.test(at)) return wire_error(fmt::format("subsection '{}' came twice", table.parts[at]->name));
    seen.set(at);
    MD_CHECK(in.skip(2 + name->size()));
    const Description& part = *table.parts[at];
    auto loaded = [&]() -> Result<void> {
      MD_TRY(const std::uint32_t version, in.u32());
      return load_state(part, object, version, in);
    }();
    if (!loaded) return std::move(loaded).error().with(fmt::format("Failed to load subsection {}", part.name));
  }
  return {};
}

}  // namespace

Result<void> load_state(const Description& table, void* object, std::uint32_t version, ByteReader& in) {
  if (wants_old_loader(table, version)) return table.load_old(table, object, version, in);
  MD_CHECK(check_version(table, version));
  if (table.before_load != nullptr) MD_CHECK(table.before_load(table, object, version));
  for (const Field& row : table.rows) {
    if (!present(row, object, version)) {
      if (!row.must_exist) continue;
      return wire_error(fmt::format("Input validation failed: {}/{}", table.name, row.name));
    }
    auto loaded = row.shape->load(row, object, in);
    if (!loaded) return std::move(loaded).error().with(fmt::format("Failed to load {}:{}", table.name, row.name));
  }
  MD_CHECK(load_subsections(table, object, in));
  if (table.after_load == nullptr) return {};
  return table.after_load(table, object, version);
}

}  // namespace migrationd::vmstate
