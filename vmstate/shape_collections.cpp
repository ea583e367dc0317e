// SPDX-License-Identifier: Apache-2.0
//
// Lists, trees and views. Their elements are written as the child's newest version and read as the field's (check()
// proves that both mean the same). A loader empties the container first and stops at the bound of the row.
#include "vmstate/engine.hpp"

#include <fmt/format.h>

namespace migrationd::vmstate {
namespace {

constexpr std::uint8_t one_more = 1;
constexpr std::uint8_t no_more = 0;

// One entry of type and size for the whole container: its elements may all differ.
void note_container(const Field& row, std::size_t bytes, std::vector<FieldLayout>* notes) {
  if (notes == nullptr) return;
  FieldLayout& note = notes->emplace_back();
  note.type = row.type_name;
  note.size = bytes;
}

Result<void> check_bound(const Field& row, std::size_t size) {
  if (size <= row.capacity) return {};
  return machine_error(fmt::format("{} elements, more than {}", size, row.capacity));
}

// Asked before the first byte is read.
Result<void> check_read_as(const Description& child, std::uint32_t version) {
  const auto asked = static_cast<std::int32_t>(version);
  if (asked > static_cast<std::int32_t>(child.version)) return wire_error(fmt::format("{} too new", child.name));
  if (asked < static_cast<std::int32_t>(child.minimum_version))
    return wire_error(fmt::format("{} too old", child.name));
  return {};
}

Result<void> save_key(const Field& row, void* key, ByteWriter& out) {
  if (row.key != nullptr) return save_state(*row.key, key, out, nullptr);
  codec::u64.save(key, 0, out);
  return {};
}

Result<void> load_key(const Field& row, void* key, ByteReader& in) {
  if (row.key != nullptr) return load_state(*row.key, key, row.version, in);
  return codec::u64.load(key, 0, in);
}

}  // namespace

namespace shape_code {

Result<void> save_sequence(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes) {
  void* const container = element_address(row, object);
  MD_CHECK(check_bound(row, row.sequence->size(row, container)));
  const std::size_t start = out.size();
  auto saved = row.sequence->each(row, container, [&](void* element) {
    out.u8(one_more);
    return save_state(*row.nested, element, out, nullptr);
  });
  if (!saved) return saved;
  out.u8(no_more);
  note_container(row, out.size() - start, notes);
  return {};
}

Result<void> load_sequence(const Field& row, void* object, ByteReader& in) {
  MD_CHECK(check_read_as(*row.nested, row.version));
  void* const container = element_address(row, object);
  row.sequence->clear(row, container);
  for (std::uint32_t i = 0;; ++i) {
    MD_TRY(const std::uint8_t more, in.u8());
    if (more == no_more) return {};
    if (i == row.capacity) return wire_error(fmt::format("more than {} elements", row.capacity));
    auto loaded = row.sequence->append(
        row, container, [&](void* element) { return load_state(*row.nested, element, row.version, in); });
    if (!loaded) return std::move(loaded).error().with(fmt::format("element {}", i));
  }
}

Result<void> save_tree(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes) {
  void* const container = element_address(row, object);
  const std::size_t nodes = row.tree->size(row, container);
  MD_CHECK(check_bound(row, nodes));
  const std::size_t start = out.size();
  out.u32(static_cast<std::uint32_t>(nodes));
  auto saved = row.tree->each(row, container, [&](void* key, void* value) -> Result<void> {
    out.u8(one_more);
    MD_CHECK(save_key(row, key, out));
    return save_state(*row.nested, value, out, nullptr);
  });
  if (!saved) return saved;
  out.u8(no_more);
  note_container(row, out.size() - start, notes);
  return {};
}

Result<void> load_tree(const Field& row, void* object, ByteReader& in) {
  if (row.key != nullptr) MD_CHECK(check_read_as(*row.key, row.version));
  MD_CHECK(check_read_as(*row.nested, row.version));
  void* const container = element_address(row, object);
  row.tree->clear(row, container);
  MD_TRY(const std::uint32_t nodes, in.u32());
  if (nodes > row.capacity) return wire_error(fmt::format("{} nodes, more than {}", nodes, row.capacity));
  for (std::uint32_t i = 0;; ++i) {
    MD_TRY(const std::uint8_t more, in.u8());
    // More nodes than announced, or fewer.
    if ((more == no_more) != (i == nodes)) {
      return wire_error(fmt::format("{} inconsistent stream when loading the gtree", row.name));
    }
    if (more == no_more) return {};
    auto loaded = row.tree->insert(row, container, [&](void* key, void* value) -> Result<void> {
      MD_CHECK(load_key(row, key, in));
      return load_state(*row.nested, value, row.version, in);
    });
    if (!loaded) return std::move(loaded).error().with(fmt::format("node {}", i));
  }
}

Result<void> save_view(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes) {
  const std::size_t start = out.size();
  FieldLayout note;
  note.type = row.type_name;
  Layout* const child = notes != nullptr ? &note.nested.emplace_back() : nullptr;
  MD_CHECK(row.view->with(row, object, [&](void* view) { return save_state(*row.nested, view, out, child); }));
  note.size = out.size() - start;
  if (notes != nullptr) notes->push_back(std::move(note));
  return {};
}

Result<void> load_view(const Field& row, void* object, ByteReader& in) {
  MD_CHECK(check_read_as(*row.nested, row.version));
  return row.view->with(row, object, [&](void* view) { return load_state(*row.nested, view, row.version, in); });
}

}  // namespace shape_code
}  // namespace migrationd::vmstate
