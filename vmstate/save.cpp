// SPDX-License-Identifier: Apache-2.0
//
// Saving: one loop over the rows, whose shapes write their elements.
#include "vmstate/engine.hpp"

#include <fmt/format.h>

namespace migrationd::vmstate {

namespace {

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

Result<void> save_row(const Description& table, std::size_t at, void* object, ByteWriter& out, Layout* layout) {
  const Field& row = table.rows[at];
  std::vector<FieldLayout> notes;
  MD_CHECK(row.shape->save(row, object, out, layout != nullptr ? &notes : nullptr));
  if (notes.empty()) return {};
  const std::string name = described_name(table, at);
  for (FieldLayout& note : notes) {
    note.name = name;
    layout->fields.push_back(std::move(note));
  }
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

Result<void> save_body(const Description& table, void* object, std::uint32_t version, ByteWriter& out, Layout* layout) {
  for (std::size_t at = 0; at < table.rows.size(); ++at) {
    const Field& row = table.rows[at];
    if (!present(row, object, version)) {
      if (!row.must_exist) continue;
      return machine_error(fmt::format("Output state validation failed: {}/{}", table.name, row.name));
    }
    auto saved = save_row(table, at, object, out, layout);
    if (!saved) return std::move(saved).error().with(fmt::format("Save of field {}/{} failed", table.name, row.name));
  }
  return save_subsections(table, object, out, layout);
}

}  // namespace

Result<void> save_state(const Description& table, void* object, ByteWriter& out, Layout* layout) {
  return save_state_as(table, object, table.version, out, layout);
}

Result<void> save_state_as(const Description& table, void* object, std::uint32_t version, ByteWriter& out,
                           Layout* layout) {
  if (layout != nullptr) {
    layout->name = table.name;
    layout->version = version;
  }
  if (table.before_save != nullptr) {
    auto ready = table.before_save(table, object);
    if (!ready) return std::move(ready).error().with(fmt::format("pre-save failed: {}", table.name));
  }
  auto saved = save_body(table, object, version, out, layout);
  if (table.after_save != nullptr) {
    auto after = table.after_save(table, object);
    if (saved && !after) return std::move(after).error().with(fmt::format("post-save failed: {}", table.name));
  }
  return saved;
}

}  // namespace migrationd::vmstate
