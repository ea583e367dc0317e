// SPDX-License-Identifier: Apache-2.0
//
// Shape: how the elements of a row are reached and framed (docs/formats/vmstate.md, "Shapes").
//
// The engine knows rows; what a row's elements are is behind two functions. A shape walks its elements and gives each
// to the row's codec or nested description, by the functions at the end of this file. A new shape is a new constant:
// engine and tables do not change.
//
//   flat      n elements one after the other, in the object or in a Storage that hangs off it
//   pointers  n slots, each a pointer to an element, or null
//   sequence  a queue or list: 01 element ... 00
//   tree      u32 number, then 01 key value ... 00
//   view      another struct, made for the time of the call from its owner; no bytes of its own
//
// A Storage says how elements hang off a member that does not hold them itself (pointer, unique_ptr, vector, span);
// what a loader makes is never more than the capacity in the row.
//
// Thread: constants.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace migrationd::vmstate {

struct Field;
struct FieldLayout;

enum class ShapeKind : std::uint8_t { flat, pointers, sequence, tree, view };

struct Shape {
  ShapeKind kind;
  // Appends the row's elements; `notes`, if not null, gets one entry per run of equal ones, without their names.
  Result<void> (*save)(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes);
  Result<void> (*load)(const Field& row, void* object, ByteReader& in);
};

namespace shape_code {
Result<void> save_flat(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes);
Result<void> load_flat(const Field& row, void* object, ByteReader& in);
Result<void> save_pointers(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes);
Result<void> load_pointers(const Field& row, void* object, ByteReader& in);
Result<void> save_sequence(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes);
Result<void> load_sequence(const Field& row, void* object, ByteReader& in);
Result<void> save_tree(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes);
Result<void> load_tree(const Field& row, void* object, ByteReader& in);
Result<void> save_view(const Field& row, void* object, ByteWriter& out, std::vector<FieldLayout>* notes);
Result<void> load_view(const Field& row, void* object, ByteReader& in);
}  // namespace shape_code

namespace shape {
inline constexpr Shape flat{ShapeKind::flat, &shape_code::save_flat, &shape_code::load_flat};
inline constexpr Shape pointers{ShapeKind::pointers, &shape_code::save_pointers, &shape_code::load_pointers};
inline constexpr Shape sequence{ShapeKind::sequence, &shape_code::save_sequence, &shape_code::load_sequence};
inline constexpr Shape tree{ShapeKind::tree, &shape_code::save_tree, &shape_code::load_tree};
inline constexpr Shape view{ShapeKind::view, &shape_code::save_view, &shape_code::load_view};
}  // namespace shape

// --- what a row may refer to -----------------------------------------------------------------------------
// `member` is the address of the member (of the pointer, of the vector), not of the elements.
struct Storage {
  void* (*first)(void* member);                                             // element 0; null: there is none
  std::size_t (*room)(const void* member);                                  // elements it holds; null: not known
  Result<void> (*make)(const Field& row, void* member, std::size_t count);  // by the loader; null: must be there
};

using ElementCall = std::function<Result<void>(void* element)>;
using PairCall = std::function<Result<void>(void* key, void* value)>;

// A list or queue. All functions get their row, for those made at run time (Field::context).
struct SequenceOperations {
  std::size_t (*size)(const Field& row, const void* container);
  Result<void> (*each)(const Field& row, void* container, const ElementCall& call);  // first to last, stops at errors
  void (*clear)(const Field& row, void* container);
  // Adds an element, lets `fill` load it; after an error the element is the container's all the same.
  Result<void> (*append)(const Field& row, void* container, const ElementCall& fill);
};

struct TreeOperations {
  std::size_t (*size)(const Field& row, const void* container);
  Result<void> (*each)(const Field& row, void* container, const PairCall& call);  // in key order
  void (*clear)(const Field& row, void* container);
  // Lets `fill` load a key and a value and adds them; a key that is there already is an error.
  Result<void> (*insert)(const Field& row, void* container, const PairCall& fill);
};

// Makes the view of `object` for the time of `call`.
struct ViewOperations {
  Result<void> (*with)(const Field& row, void* object, const ElementCall& call);
};

}  // namespace migrationd::vmstate
