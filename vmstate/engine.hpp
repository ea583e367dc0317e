// SPDX-License-Identifier: Apache-2.0
//
// The engine: one loop that saves, one that loads.
//
// Save walks a table over an object, writes its bytes and, when asked, notes the Layout of what it wrote. Load
// reads the same order back. The order of hooks, fields and subsections and what a failure does are those of
// docs/formats/vmstate.md, "Saving" and "Loading":
//
//   save  pre_save; fields in order; subsections that are needed; post_save (always once pre_save succeeded).
//         The first error is the result; post_save's own counts only when there was none before.
//   load  version range; pre_load; fields in order; subsections as they come, in any order; post_load.
//
// The reader is strict where nothing legal is lost: a count above the table's capacity, a bool other than 0 and 1
// and a subsection that comes twice are errors. It reads only from the span it is given, never allocates more than the
// bound that stands in the table, and recursion is as deep as the table (check() bounds it).
//
// Errors: ErrorKind::wire for the stream's faults, ErrorKind::machine for the object's; hooks choose their own.
//
// Thread: the object belongs to the caller for the duration of the call.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "vmstate/description.hpp"
#include "vmstate/self_description.hpp"

#include <cstdint>

namespace migrationd::vmstate {

// Appends the state of `object` to `out`. `layout`, if not null, gets the description of what was written.
// `object` is not const because pre_save may fill members; it is an instance of the table's struct.
Result<void> save_state(const Description& table, void* object, ByteWriter& out, Layout* layout);

// Reads `object` from `in` as the given version, and leaves `in` behind the last byte that belongs to it.
// After an error the object is partly loaded: discard it.
Result<void> load_state(const Description& table, void* object, std::uint32_t version, ByteReader& in);

template <class T>
Result<void> save(const DescriptionOf<T>& table, T& object, ByteWriter& out, Layout* layout = nullptr) {
  return save_state(table, &object, out, layout);
}
template <class T>
Result<void> load(const DescriptionOf<T>& table, T& object, std::uint32_t version, ByteReader& in) {
  return load_state(table, &object, version, in);
}

// --- shared by both loops and the shapes --------------------------------------------------------------------

// A subsection's first byte.
inline constexpr std::uint8_t subsection_marker = 0x05;

// Saves as an older version of the description: a struct with a version of its own.
Result<void> save_state_as(const Description& table, void* object, std::uint32_t version, ByteWriter& out,
                           Layout* layout);

bool present(const Field& row, const void* object, std::uint32_t version);

// Number of elements (1 for a counted buffer or bitmap) and bytes per element as the object says now; an error when
// the count is outside the table's capacity.
struct Extent {
  std::uint32_t elements = 0;
  std::size_t bytes = 0;  // for codecs without a length of their own; bits of a bitmap
  std::size_t held = 0;   // what a Storage must hold: elements, bytes or words
};
Result<Extent> extent_of(const Field& row, const void* object);

// One element by the row's codec or description. `note`, if not null, gets type, size and what is nested.
Result<void> save_element(const Field& row, void* element, std::size_t bytes, ByteWriter& out, FieldLayout* note);
Result<void> load_element(const Field& row, void* element, std::size_t bytes, ByteReader& in);

// Puts elements of one array (their notes) into the description: one entry for all if they are alike and the table
// says that others will be too, else one each with its index, `first` being that of the first. `array` is the number
// of elements in the whole array.
void note_elements(const Field& row, std::vector<FieldLayout> elements, std::uint32_t count, std::uint32_t first,
                   std::uint32_t array, std::vector<FieldLayout>& into);

}  // namespace migrationd::vmstate
