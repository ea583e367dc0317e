// SPDX-License-Identifier: Apache-2.0
//
// Arrays: elements one after the other, and slots that point to them. Arrays are described once per run of equal
// elements only when that is certain to be true of every object the table can describe: no predicate, no subsections
// inside, and, checked on the bytes really written, all elements alike.
#include "vmstate/engine.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::vmstate {

bool present(const Field& row, const void* object, std::uint32_t version) {
  if (row.exists != nullptr) return row.exists(object, version);
  return row.version <= version && version <= row.last_version;
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

// Elements, bytes or words that the row's storage must hold.
std::size_t held_by(const Field& row, std::uint32_t elements, std::size_t bytes) {
  if (row.is_bitmap) return bitmap_words(bytes);
  return row.count_is_bytes || row.bytes != 0 ? elements * bytes : elements;
}

}  // namespace

Result<Extent> extent_of(const Field& row, const void* object) {
  if (row.count == nullptr && row.count_type == CountType::none) {
    return Extent{row.capacity, row.bytes, held_by(row, row.capacity, row.bytes)};
  }
  std::int64_t count = row.count != nullptr ? row.count(object) : count_at(row, object);
  const std::int64_t most = row.capacity / row.count_factor;
  if (count < 0 || count > most) return wire_error(fmt::format("count {} is outside 0..{}", count, most));
  count *= row.count_factor;
  if (row.count_is_bytes || row.is_bitmap) {
    const auto bytes = static_cast<std::size_t>(count);
    return Extent{1, bytes, held_by(row, 1, bytes)};
  }
  const auto elements = static_cast<std::uint32_t>(count);
  return Extent{elements, row.bytes, held_by(row, elements, row.bytes)};
}

namespace {

// No element of an array of this struct can differ from another in what is there.
bool uniform(const Description& table) {
  const auto row_is_uniform = [](const Field& row) {
    return row.exists == nullptr && (row.nested == nullptr || uniform(*row.nested));
  };
  return table.parts.empty() && std::all_of(table.rows.begin(), table.rows.end(), row_is_uniform);
}

std::string_view element_type(const Field& row) {
  if (row.nested == nullptr) return row.codec->name;
  return row.is_versioned ? "vstruct" : "struct";
}

// The version a nested struct is written and read with: it has none on the wire.
std::uint32_t element_version(const Field& row) { return row.is_versioned ? row.struct_version : row.nested->version; }

}  // namespace

void note_elements(const Field& row, std::vector<FieldLayout> elements, std::uint32_t count, std::uint32_t first,
                   std::uint32_t array, std::vector<FieldLayout>& into) {
  const bool may_compress = row.exists == nullptr && (row.nested == nullptr || uniform(*row.nested));
  const bool alike = std::all_of(elements.begin(), elements.end(),
                                 [&](const FieldLayout& element) { return element == elements.front(); });
  if (!elements.empty() && may_compress && alike) {
    if (count > 1) elements.front().array_length = count;
    into.push_back(std::move(elements.front()));
    return;
  }
  for (std::uint32_t i = 0; i < elements.size(); ++i) {
    if (array > 1) elements[i].index = first + i;
    into.push_back(std::move(elements[i]));
  }
}

Result<void> save_element(const Field& row, void* element, std::size_t bytes, ByteWriter& out, FieldLayout* note) {
  const std::size_t start = out.size();
  if (note != nullptr) note->type = element_type(row);
  if (row.nested != nullptr) {
    Layout* child = nullptr;
    if (note != nullptr) child = &note->nested.emplace_back();
    MD_CHECK(save_state_as(*row.nested, element, element_version(row), out, child));
  } else {
    row.codec->save(element, bytes, out);
  }
  if (note != nullptr) note->size = out.size() - start;
  return {};
}

Result<void> load_element(const Field& row, void* element, std::size_t bytes, ByteReader& in) {
  if (row.nested != nullptr) return load_state(*row.nested, element, element_version(row), in);
  const std::size_t before = in.position();
  auto loaded = row.codec->load(element, bytes, in);
  // A value that was read and is not wanted, not a stream that ends.
  if (loaded || row.hint.empty() || in.position() == before) return loaded;
  return Error(loaded.error().kind(), fmt::format("{}; {}", loaded.error().text(), row.hint));
}

namespace {

// Element 0 of a row: in the object, or where its storage has it. Null only for rows without storage and empty ones.
Result<std::byte*> first_element(const Field& row, void* object, const Extent& extent) {
  std::byte* const member = element_address(row, object);
  if (row.storage == nullptr) return member == nullptr ? member : member + row.start;
  if (extent.held == 0) return nullptr;
  if (row.storage->room != nullptr && extent.held > row.storage->room(member)) {
    return machine_error(fmt::format("count {} is outside 0..{}", extent.held, row.storage->room(member)));
  }
  auto* const first = static_cast<std::byte*>(row.storage->first(member));
  if (first == nullptr) return machine_error("the pointer is null");
  return first + row.start;
}

Result<std::byte*> make_first_element(const Field& row, void* object, const Extent& extent) {
  if (row.storage != nullptr && row.storage->make != nullptr) {
    MD_CHECK(row.storage->make(row, element_address(row, object), extent.held));
  }
  return first_element(row, object, extent);
}

// While saving the count is our own, so it is the object that is wrong.
Result<Extent> own_extent(const Field& row, const void* object) {
  auto extent = extent_of(row, object);
  if (!extent) return machine_error(extent.error().text());
  return extent;
}

Error at_element(Error error, std::uint32_t index, std::uint32_t elements) {
  return elements == 1 ? std::move(error) : std::move(error).with(fmt::format("element {}", index));
}

}  // namespace

namespace shape_code {

Result<void> save_flat(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes) {
  MD_TRY(const Extent extent, own_extent(row, object));
  MD_TRY(std::byte* const first, first_element(row, object, extent));
  // Elements of a codec with a fixed length are alike by nature: the first one speaks for all.
  const bool alike_by_nature = row.codec != nullptr && row.codec->wire_bytes != 0 && row.exists == nullptr;
  std::vector<FieldLayout> each;
  for (std::uint32_t i = 0; i < extent.elements; ++i) {
    FieldLayout* note = nullptr;
    if (notes != nullptr && (i == 0 || !alike_by_nature)) note = &each.emplace_back();
    MD_CHECK(save_element(row, first != nullptr ? first + i * row.stride : nullptr, extent.bytes, out, note));
  }
  if (!each.empty()) note_elements(row, std::move(each), extent.elements, 0, extent.elements, *notes);
  return {};
}

Result<void> load_flat(const Field& row, void* object, ByteReader& in) {
  MD_TRY(const Extent extent, extent_of(row, object));
  MD_TRY(std::byte* const first, make_first_element(row, object, extent));
  for (std::uint32_t i = 0; i < extent.elements; ++i) {
    auto loaded = load_element(row, first != nullptr ? first + i * row.stride : nullptr, extent.bytes, in);
    if (!loaded) return at_element(std::move(loaded).error(), i, extent.elements);
  }
  return {};
}

// Nothing on the wire tells a null slot from an element: the reader's own slots say which are null.
Result<void> save_pointers(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes) {
  MD_TRY(const Extent extent, own_extent(row, object));
  MD_TRY(std::byte* const first, first_element(row, object, extent));
  std::vector<FieldLayout> run;
  bool run_is_null = false;
  const auto end_run = [&](std::uint32_t end) {
    if (run.empty()) return;
    const auto length = static_cast<std::uint32_t>(run.size());
    if (run_is_null) {
      run.front().array_length = length > 1 ? length : 0;
      notes->push_back(std::move(run.front()));
    } else {
      note_elements(row, std::move(run), length, end - length, extent.elements, *notes);
    }
    run.clear();
  };
  for (std::uint32_t i = 0; i < extent.elements; ++i) {
    void* const element = row.slot->first(first + i * row.stride);
    const bool is_null = element == nullptr;
    if (notes != nullptr && is_null != run_is_null) end_run(i);
    run_is_null = is_null;
    FieldLayout* const note = notes != nullptr ? &run.emplace_back() : nullptr;
    if (!is_null) {
      MD_CHECK(save_element(row, element, row.bytes, out, note));
      continue;
    }
    out.u8(null_marker);
    if (note == nullptr) continue;
    note->type = null_type;
    note->size = 1;
  }
  if (notes != nullptr) end_run(extent.elements);
  return {};
}

Result<void> load_pointers(const Field& row, void* object, ByteReader& in) {
  MD_TRY(const Extent extent, extent_of(row, object));
  MD_TRY(std::byte* const first, first_element(row, object, extent));
  const auto load_slot = [&](void* element) -> Result<void> {
    if (element != nullptr) return load_element(row, element, row.bytes, in);
    MD_TRY(const std::uint8_t marker, in.u8());
    if (marker == null_marker) return {};
    return wire_error("vmstate: get_nullptr expected VMS_NULLPTR_MARKER");
  };
  for (std::uint32_t i = 0; i < extent.elements; ++i) {
    auto loaded = load_slot(row.slot->first(first + i * row.stride));
    if (!loaded) return at_element(std::move(loaded).error(), i, extent.elements);
  }
  return {};
}

}  // namespace shape_code
}  // namespace migrationd::vmstate
