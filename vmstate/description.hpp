// SPDX-License-Identifier: Apache-2.0
//
// Description: a device's table, and its proof while compiling.
//
//     inline constexpr auto clock_description =
//         vmstate::describe<Clock>("clock", 2).fields(clock_fields).readable_from(1).pre_save<&Clock::freeze>();
//     static_assert(vmstate::check(clock_description) == vmstate::TableFault::none);
//
// Hooks (docs/formats/vmstate.md, "Hooks"): pre_save fills what is only made for the wire, post_save undoes it
// and always runs when pre_save succeeded; pre_load sets what an absent field or subsection leaves alone,
// post_load checks and spreads what came, after all subsections. A hook is a member or a free function returning
// void or Result<void>; pre_load and post_load may take the version loaded. Saving changes nothing the guest can
// see (it may go on running), loading looks at no other device (their order is undefined).
//
// Compatibility: new optional state is a subsection with needed(); a dropped field leaves unused(); an
// incompatible change raises the version and gives new fields that number. A nested struct carries no version on
// the wire: it is always read as the reader's own newest.
//
// Thread: constants.
#pragma once

#include "base/bytes.hpp"
#include "vmstate/field.hpp"
#include "vmstate/property.hpp"

#include <cstdint>
#include <functional>
#include <span>
#include <string_view>
#include <type_traits>

namespace migrationd::vmstate {

// Classes of the load order (docs/formats/vmstate.md, "Registration"): higher ones are sent first.
enum class Priority : std::uint8_t { normal, iommu, pci_bus, virtio_mem, gicv3_its, gicv3 };

// A hook is given its table too, so that one made at run time can keep more than a function (a class derived from
// Description with a callback and its context).
using Hook = Result<void> (*)(const Description& table, void* object);
using LoadHook = Result<void> (*)(const Description& table, void* object, std::uint32_t version);
// Reads a version that the table does not know any more.
using OldLoader = Result<void> (*)(const Description& table, void* object, std::uint32_t version, ByteReader& in);

struct Description {
  std::string_view name;
  std::uint32_t version = 0;          // written; the newest that can be read
  std::uint32_t minimum_version = 0;  // the oldest that can be read
  std::uint64_t owner = 0;            // type_id of the state struct
  std::size_t object_bytes = 0;       // its size; 0: not known
  std::span<const Field> rows{};
  std::span<const Description* const> parts{};  // subsections, in the order they are written
  Priority priority = Priority::normal;
  bool unmigratable = false;                     // its presence alone forbids migration
  bool early = false;                            // sent in the setup phase, before memory
  bool (*needed)(const void* object) = nullptr;  // top level and subsections: whether to send at all
  Hook before_save = nullptr;
  Hook after_save = nullptr;
  LoadHook before_load = nullptr;
  LoadHook after_load = nullptr;
  // Versions from minimum_version_old on, below minimum_version, go to load_old and nothing else of the table.
  std::uint32_t minimum_version_old = 0;
  OldLoader load_old = nullptr;
  // Whether the guest still has to release the device (top level): a migration waits for it before its first byte.
  bool (*unplug_pending)(const void* object) = nullptr;
  std::span<const Property> properties{};  // what a machine version may switch
};

namespace detail {

template <auto Function, class T>
Result<void> hook(const Description& /*table*/, void* object) {
  T& state = *static_cast<T*>(object);
  if constexpr (std::is_void_v<decltype(std::invoke(Function, state))>) {
    std::invoke(Function, state);
    return {};
  } else {
    return std::invoke(Function, state);
  }
}

template <auto Function, class T>
Result<void> load_hook(const Description& table, void* object, std::uint32_t version) {
  if constexpr (std::is_invocable_v<decltype(Function), T&, std::uint32_t>) {
    T& state = *static_cast<T*>(object);
    if constexpr (std::is_void_v<decltype(std::invoke(Function, state, version))>) {
      std::invoke(Function, state, version);
      return {};
    } else {
      return std::invoke(Function, state, version);
    }
  } else {
    return hook<Function, T>(table, object);
  }
}

template <auto Function, class T>
Result<void> old_loader(const Description& /*table*/, void* object, std::uint32_t version, ByteReader& in) {
  return std::invoke(Function, *static_cast<T*>(object), version, in);
}

template <auto Predicate, class T>
bool needed(const void* object) {
  return std::invoke(Predicate, *static_cast<const T*>(object));
}

}  // namespace detail

// A Description of state struct T. Each member returns a changed copy.
template <class T>
struct DescriptionOf : Description {
  constexpr DescriptionOf fields(std::span<const Field> table) const {
    DescriptionOf out = *this;
    out.rows = table;
    return out;
  }
  constexpr DescriptionOf subsections(std::span<const Description* const> list) const {
    DescriptionOf out = *this;
    out.parts = list;
    return out;
  }
  constexpr DescriptionOf readable_from(std::uint32_t oldest) const {
    DescriptionOf out = *this;
    out.minimum_version = oldest;
    return out;
  }
  constexpr DescriptionOf with_priority(Priority value) const {
    DescriptionOf out = *this;
    out.priority = value;
    return out;
  }
  constexpr DescriptionOf forbids_migration() const {
    DescriptionOf out = *this;
    out.unmigratable = true;
    return out;
  }
  constexpr DescriptionOf sent_early() const {
    DescriptionOf out = *this;
    out.early = true;
    return out;
  }
  constexpr DescriptionOf with_properties(std::span<const Property> list) const {
    DescriptionOf out = *this;
    out.properties = list;
    return out;
  }
  // `Function`, callable with (T&, u32 version, ByteReader&), reads the versions from `oldest` to below the minimum.
  template <auto Function>
  constexpr DescriptionOf old_versions_from(std::uint32_t oldest) const {
    DescriptionOf out = *this;
    out.minimum_version_old = oldest;
    out.load_old = &detail::old_loader<Function, T>;
    return out;
  }
  template <auto Predicate>
  constexpr DescriptionOf unplug_pending_if() const {
    DescriptionOf out = *this;
    out.unplug_pending = &detail::needed<Predicate, T>;
    return out;
  }
  template <auto Predicate>
  constexpr DescriptionOf needed_if() const {
    DescriptionOf out = *this;
    out.needed = &detail::needed<Predicate, T>;
    return out;
  }
  template <auto Function>
  constexpr DescriptionOf pre_save() const {
    DescriptionOf out = *this;
    out.before_save = &detail::hook<Function, T>;
    return out;
  }
  template <auto Function>
  constexpr DescriptionOf post_save() const {
    DescriptionOf out = *this;
    out.after_save = &detail::hook<Function, T>;
    return out;
  }
  template <auto Function>
  constexpr DescriptionOf pre_load() const {
    DescriptionOf out = *this;
    out.before_load = &detail::load_hook<Function, T>;
    return out;
  }
  template <auto Function>
  constexpr DescriptionOf post_load() const {
    DescriptionOf out = *this;
    out.after_load = &detail::load_hook<Function, T>;
    return out;
  }
};

template <class T>
constexpr DescriptionOf<T> describe(std::string_view name, std::uint32_t version) {
  DescriptionOf<T> out{};
  out.name = name;
  out.version = version;
  out.owner = type_id<T>;
  out.object_bytes = sizeof(T);
  return out;
}

// What can be wrong with a table. A failed static_assert on check() shows the name.
enum class TableFault : std::uint8_t {
  none,
  description_without_name,
  name_too_long,  // readers take 127 bytes (the analyser's rule; the wire itself could carry 255)
  field_without_name,
  field_name_twice,
  field_newer_than_description,
  field_of_another_struct,
  type_without_operations,
  field_without_elements,
  field_outside_object,           // its offset, or that of its count, for rows made at run time
  field_never_present,            // `until` is below `since`, or below the oldest version that can be read
  bound_too_large,                // what a loader may make of it is above table_allocation_bytes
  element_version_outside_child,  // elements of lists, trees and views are read as the field's version
  element_field_not_read,         // and so a field of theirs would be written and not be read
  struct_version_outside_child,
  count_after_its_array,  // the count must be loaded before the array is
  minimum_above_version,
  version_negative,  // versions are compared as signed 32-bit numbers
  subsection_of_another_struct,
  subsection_name_not_prefixed,
  subsection_twice,
  subsection_taken_by_another,  // what ends in front of it would take it for one of its own
  too_many_subsections,
  subsection_above_top_level,  // priority, early, unmigratable and properties belong to the top level
  property_twice,
  nested_too_deep,
};

inline constexpr std::size_t table_name_bytes = 127;
inline constexpr unsigned table_depth = 16;
inline constexpr std::size_t table_subsections = 64;
// What one field may make a loader allocate: a quarter of all the device state a stream may hold.
inline constexpr std::size_t table_allocation_bytes = std::size_t{64} << 20;

namespace detail {

// Whether [offset, offset + size * number) lies within an object of `bytes`; 0: not known.
constexpr bool within(std::size_t bytes, std::size_t offset, std::size_t size, std::size_t number) {
  if (bytes == 0) return true;
  return offset <= bytes && (size == 0 || number <= (bytes - offset) / size);
}

constexpr std::size_t bytes_of(CountType type) {
  if (type == CountType::none) return 0;
  return type == CountType::u8 ? 1 : type == CountType::u16 ? 2 : 4;
}

// Where the elements hang off a member, its size is all there is to prove: a pointer at the least.
constexpr bool row_within(const Description& table, const Field& row) {
  if (!within(table.object_bytes, row.count_offset, bytes_of(row.count_type), 1)) return false;
  if (row.offset == no_offset) return true;
  const bool outside = row.loader_allocates || row.is_outside || row.shape->kind == ShapeKind::sequence ||
                       row.shape->kind == ShapeKind::tree || row.shape->kind == ShapeKind::view;
  if (outside) return within(table.object_bytes, row.offset, row.shape->kind == ShapeKind::view ? 0 : sizeof(void*), 1);
  if (row.is_bitmap) {
    const std::size_t bits = row.is_counted ? row.capacity : row.bytes;
    return within(table.object_bytes, row.offset, sizeof(std::uint64_t), bitmap_words(bits));
  }
  return within(table.object_bytes, row.offset + row.start, row.stride, row.capacity);
}

// Elements of lists, trees and views are written as the child's newest version and read as the field's: every field of
// theirs has to be there in both.
constexpr TableFault read_as_fault(const Description& child, std::uint32_t version) {
  if (version > child.version || version < child.minimum_version) return TableFault::element_version_outside_child;
  for (const Field& row : child.rows) {
    if (row.has_predicate) continue;
    const bool written = row.version <= child.version && child.version <= row.last_version;
    const bool read = row.version <= version && version <= row.last_version;
    if (written != read) return TableFault::element_field_not_read;
  }
  return TableFault::none;
}

constexpr TableFault shape_fault(const Field& row) {
  const ShapeKind kind = row.shape->kind;
  const bool makes = row.loader_allocates || kind == ShapeKind::sequence || kind == ShapeKind::tree;
  const std::size_t each = row.is_bitmap ? 1 : row.stride;
  if (makes && each != 0 && row.capacity > table_allocation_bytes / each) return TableFault::bound_too_large;
  if (row.is_versioned &&
      (row.struct_version > row.nested->version || row.struct_version < row.nested->minimum_version)) {
    return TableFault::struct_version_outside_child;
  }
  if (kind != ShapeKind::sequence && kind != ShapeKind::tree && kind != ShapeKind::view) return TableFault::none;
  if (row.has_key) {
    if (const TableFault found = read_as_fault(*row.key, row.version); found != TableFault::none) return found;
  }
  return row.is_nested ? read_as_fault(*row.nested, row.version) : TableFault::none;
}

constexpr TableFault field_fault(const Description& table, std::size_t at) {
  const Field& row = table.rows[at];
  if (row.name.empty()) return TableFault::field_without_name;
  if (row.name.size() > table_name_bytes) return TableFault::name_too_long;
  if (row.owner != table.owner) return TableFault::field_of_another_struct;
  if (row.version > table.version) return TableFault::field_newer_than_description;
  if (!row.has_operations) return TableFault::type_without_operations;
  if (row.last_version < row.version || row.last_version < table.minimum_version) {
    return TableFault::field_never_present;
  }
  // Only a validation has no elements.
  if ((row.capacity == 0 && !row.must_exist) || row.count_factor == 0) return TableFault::field_without_elements;
  if (!row_within(table, row)) return TableFault::field_outside_object;
  if (const TableFault found = shape_fault(row); found != TableFault::none) return found;
  for (std::size_t other = 0; other < table.rows.size(); ++other) {
    if (other == at) continue;
    const Field& second = table.rows[other];
    if (second.name == row.name && !(row.shared_name && second.shared_name)) return TableFault::field_name_twice;
    if (row.is_counted && second.member == row.count_member && other > at) {
      return TableFault::count_after_its_array;
    }
  }
  return TableFault::none;
}

constexpr TableFault fault(const Description& table, unsigned depth);

// Whoever has just been loaded takes what begins with its own name for its subsection (load.cpp).
constexpr bool takes(const Description& table, std::string_view name) {
  return name.size() > table.name.size() && name.substr(0, table.name.size()) == table.name;
}

// Lists and trees end with a byte of their own.
constexpr bool is_closed(const Field& row) {
  return row.shape->kind == ShapeKind::sequence || row.shape->kind == ShapeKind::tree;
}

// At least a byte, in every state and version. A struct may have no field.
constexpr bool surely_written(const Description& table, const Field& row) {
  if (row.has_predicate || row.is_counted || row.must_exist) return false;
  if (row.version > table.minimum_version || row.last_version < table.version) return false;
  if (!row.is_nested || is_closed(row)) return true;
  for (const Field& inner : row.nested->rows) {
    if (surely_written(*row.nested, inner)) return true;
  }
  return false;
}

constexpr bool end_takes(const Description& table, std::string_view name);

constexpr bool last_rows_take(const Description& table, std::string_view name) {
  for (std::size_t at = table.rows.size(); at-- > 0;) {
    const Field& row = table.rows[at];
    if (row.is_nested && !is_closed(row) && end_takes(*row.nested, name)) return true;
    if (surely_written(table, row)) return false;
  }
  return false;
}

// Whether one of those that may end where `table` ends takes it. Every subsection may be the last that is written.
constexpr bool end_takes(const Description& table, std::string_view name) {
  if (takes(table, name) || last_rows_take(table, name)) return true;
  for (const Description* part : table.parts) {
    if (end_takes(*part, name)) return true;
  }
  return false;
}

constexpr TableFault neighbour_fault(const Description& table) {
  for (std::size_t at = 0; at < table.parts.size(); ++at) {
    if (last_rows_take(table, table.parts[at]->name)) return TableFault::subsection_taken_by_another;
    for (std::size_t before = 0; before < at; ++before) {
      if (end_takes(*table.parts[before], table.parts[at]->name)) return TableFault::subsection_taken_by_another;
    }
  }
  return TableFault::none;
}

constexpr TableFault subsection_fault(const Description& table, std::size_t at, unsigned depth) {
  const Description& part = *table.parts[at];
  if (part.owner != table.owner) return TableFault::subsection_of_another_struct;
  if (part.name.size() <= table.name.size() || part.name.substr(0, table.name.size()) != table.name) {
    return TableFault::subsection_name_not_prefixed;
  }
  if (part.priority != Priority::normal || part.early || part.unmigratable || !part.properties.empty()) {
    return TableFault::subsection_above_top_level;
  }
  for (std::size_t other = 0; other < at; ++other) {
    if (table.parts[other]->name == part.name) return TableFault::subsection_twice;
  }
  return fault(part, depth + 1);
}

constexpr TableFault fault(const Description& table, unsigned depth) {
  if (depth > table_depth) return TableFault::nested_too_deep;
  if (table.name.empty()) return TableFault::description_without_name;
  if (table.name.size() > table_name_bytes) return TableFault::name_too_long;
  if (table.version > 0x7fffffffU) return TableFault::version_negative;
  if (table.minimum_version > table.version) return TableFault::minimum_above_version;
  for (std::size_t at = 0; at < table.rows.size(); ++at) {
    if (const TableFault found = field_fault(table, at); found != TableFault::none) return found;
    if (table.rows[at].has_key) {
      if (const TableFault found = fault(*table.rows[at].key, depth + 1); found != TableFault::none) return found;
    }
    if (!table.rows[at].is_nested) continue;
    if (const TableFault found = fault(*table.rows[at].nested, depth + 1); found != TableFault::none) return found;
  }
  for (std::size_t at = 0; at < table.properties.size(); ++at) {
    for (std::size_t other = 0; other < at; ++other) {
      if (table.properties[other].name == table.properties[at].name) return TableFault::property_twice;
    }
  }
  if (table.parts.size() > table_subsections) return TableFault::too_many_subsections;
  for (std::size_t at = 0; at < table.parts.size(); ++at) {
    if (const TableFault found = subsection_fault(table, at, depth); found != TableFault::none) return found;
  }
  return neighbour_fault(table);
}

}  // namespace detail

// Proves a table, its nested structs and its subsections.
consteval TableFault check(const Description& table) { return detail::fault(table, 0); }

// The same for a table made at run time.
inline TableFault check_now(const Description& table) { return detail::fault(table, 0); }

// "count_after_its_array".
std::string_view fault_name(TableFault fault);

}  // namespace migrationd::vmstate
