// SPDX-License-Identifier: Apache-2.0
//
// Saving, and noting the layout. Arrays are described once per run of equal elements only when that is certain
// to be true of every object the table can describe: no predicate, no subsections inside, and, checked on the
// bytes really written, all elements alike.
#include "vmstate/engine.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::vmstate {

bool present(const Field& row, const void* object, std::uint32_t version) {
  return row.exists != nullptr ? row.exists(object, version) : row.version <= version;
}

namespace {

template <class T>
std::int64_t count_as(const void* from) {
  T value{};
  std::memcpy(&value, from, sizeof value);
  return value;
}

std::int64_t count_at(const Field& row, const void* object) {
  const void* const from = static_cast<const std::byte*>(object) + row.count_offset;
  switch (row.count_type) {
    case CountType::u8:
      return count_as<std::uint8_t>(from);
    case CountType::u16:
      return count_as<std::uint16_t>(from);
    case CountType::u32:
      return count_as<std::uint32_t>(from);
    case CountType::i32:
      return count_as<std::int32_t>(from);
    case CountType::none:
      break;
  }
  return 0;
}

}  // namespace

Result<Extent> extent_of(const Field& row, const void* object) {
  if (row.count == nullptr && row.count_type == CountType::none) return Extent{row.capacity, row.bytes};
  const std::int64_t count = row.count != nullptr ? row.count(object) : count_at(row, object);
  if (count < 0 || count > row.capacity) {
    return wire_error(fmt::format("count {} is outside 0..{}", count, row.capacity));
  }
  if (row.count_is_bytes) return Extent{1, static_cast<std::size_t>(count)};
  return Extent{static_cast<std::uint32_t>(count), row.bytes};
}

namespace {

// No element of an array of this struct can differ from another in what is there.
bool uniform(const Description& table) {
  const auto row_is_uniform = [](const Field& row) {
    return row.exists == nullptr && (row.nested == nullptr || uniform(*row.nested));
  };
  return table.parts.empty() && std::all_of(table.rows.begin(), table.rows.end(), row_is_uniform);
}

// name, or name[k] when the table has the name more than once (absent ones count too).
std::string described_name(const Description& table, std::size_t at) {
  const std::string_view name = table.rows[at].name;
  std::size_t before = 0;
  std::size_t all = 0;
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    if (table.rows[i].name != name) continue;
    ++all;
    if (i < at) ++before;
  }
  return all > 1 ? fmt::format("{}[{}]", name, before) : std::string(name);
}

// Puts the elements of one array into the description: one entry for all, or one each with its index.
void note_elements(const Field& row, std::vector<FieldLayout> elements, std::uint32_t count,
                   std::vector<FieldLayout>& into) {
  const bool may_compress = row.exists == nullptr && (row.nested == nullptr || uniform(*row.nested));
  const bool alike = std::all_of(elements.begin(), elements.end(),
                                 [&](const FieldLayout& element) { return element == elements.front(); });
  if (count > 1 && may_compress && alike) {
    elements.front().array_length = count;
    into.push_back(std::move(elements.front()));
    return;
  }
  for (std::uint32_t i = 0; i < elements.size(); ++i) {
    if (count > 1) elements[i].index = i;
    into.push_back(std::move(elements[i]));
  }
}

Result<void> save_element(const Field& row, void* element, std::size_t bytes, ByteWriter& out, FieldLayout* note) {
  const std::size_t start = out.size();
  if (row.nested != nullptr) {
    Layout* child = nullptr;
    if (note != nullptr) child = &note->nested.emplace_back();
    MD_CHECK(save_state(*row.nested, element, out, child));
  } else {
    row.codec->save(element, bytes, out);
  }
  if (note != nullptr) note->size = out.size() - start;
  return {};
}

Result<void> save_row(const Description& table, std::size_t at, void* object, ByteWriter& out, Layout* layout) {
  const Field& row = table.rows[at];
  auto extent = extent_of(row, object);
  // Here the count is our own, so it is the object that is wrong.
  if (!extent) return machine_error(extent.error().text());
  std::byte* const first = element_address(row, object);
  // Elements of a codec with a fixed length are alike by nature: the first one speaks for all.
  const bool alike_by_nature = row.codec != nullptr && row.codec->wire_bytes != 0 && row.exists == nullptr;
  std::vector<FieldLayout> notes;
  for (std::uint32_t i = 0; i < extent->elements; ++i) {
    FieldLayout* note = nullptr;
    if (layout != nullptr && (i == 0 || !alike_by_nature)) {
      note = &notes.emplace_back();
      note->name = described_name(table, at);
      note->type = row.nested != nullptr ? "struct" : row.codec->name;
    }
    MD_CHECK(save_element(row, first != nullptr ? first + i * row.stride : nullptr, extent->bytes, out, note));
  }
  if (!notes.empty()) note_elements(row, std::move(notes), extent->elements, layout->fields);
  return {};
}

Result<void> save_subsections(const Description& table, void* object, ByteWriter& out, Layout* layout) {
  for (const Description* part : table.parts) {
    if (part->needed != nullptr && !part->needed(object)) continue;
    out.u8(subsection_marker).str8(part->name).u32(part->version);
    Layout* child = nullptr;
    if (layout != nullptr) child = &layout->subsections.emplace_back();
    auto saved = save_state(*part, object, out, child);
    if (!saved) return std::move(saved).error().with(fmt::format("Save of subsection {} failed", part->name));
  }
  return {};
}

Result<void> save_body(const Description& table, void* object, ByteWriter& out, Layout* layout) {
  for (std::size_t at = 0; at < table.rows.size(); ++at) {
    const Field& row = table.rows[at];
    if (!present(row, object, table.version)) continue;
    auto saved = save_row(table, at, object, out, layout);
    if (!saved) return std::move(saved).error().with(fmt::format("Save of field {}/{} failed", table.name, row.name));
  }
  return save_subsections(table, object, out, layout);
}

}  // namespace

Result<void> save_state(const Description& table, void* object, ByteWriter& out, Layout* layout) {
  if (layout != nullptr) {
    layout->name = table.name;
    layout->version = table.version;
  }
  if (table.before_save != nullptr) {
    auto ready = table.before_save(table, object);
    if (!ready) return std::move(ready).error().with(fmt::format("pre-save failed: {}", table.name));
  }
  auto saved = save_body(table, object, out, layout);
  if (table.after_save != nullptr) {
    auto after = table.after_save(table, object);
    if (saved && !after) return std::move(after).error().with(fmt::format("post-save failed: {}", table.name));
  }
  return saved;
}

}  // namespace migrationd::vmstate
