// SPDX-License-Identifier: Apache-2.0
//
// Tables made at run time: rows that find their member by its byte offset (offsetof), for descriptions that come
// through a C interface or from a generator. The engine sees no difference.
//
//     std::vector<Field> rows{field_at("ticks", owner, codec::u64, offsetof(Clock, ticks)),
//                             counted_by(field_at("laps", owner, codec::u32, offsetof(Clock, laps), 8),
//                                        CountType::u16, offsetof(Clock, lap_count))};
//     Description table = ...;  // name, version, owner, object_bytes, rows
//     if (check_now(table) != TableFault::none) ...
//
// `owner` is any number that stands for the struct, the same in the description and its rows. With object_bytes
// set, check_now() proves that every row lies within the object. A predicate (`exists`) and `needed` are plain
// functions of the object; hooks are given their Description, so a class derived from it can carry more.
//
// The rows and all descriptions outlive every use of the table, and of each Layout made from it.
//
// Thread: values.
#pragma once

#include "vmstate/description.hpp"

namespace migrationd::vmstate {

// What check() tells a row's member by when there is no pointer to member.
constexpr std::uint64_t member_id_at(std::size_t offset) { return offset + 1; }

constexpr Field row_at(std::string_view name, std::uint64_t owner, std::size_t offset, std::size_t stride,
                       std::uint32_t elements) {
  Field out{};
  out.name = name;
  out.owner = owner;
  out.offset = offset;
  out.member = member_id_at(offset);
  out.stride = stride;
  out.capacity = elements;
  out.has_operations = true;
  return out;
}

// One element, or an array of them in the object, of a codec with a fixed length.
inline Field field_at(std::string_view name, std::uint64_t owner, const Codec& codec, std::size_t offset,
                      std::uint32_t elements = 1) {
  Field out = row_at(name, owner, offset, codec.wire_bytes, elements);
  out.codec = &codec;
  return out;
}

// A nested struct or an array of them, `stride` bytes (its sizeof) apart.
inline Field structure_at(std::string_view name, std::uint64_t owner, const Description& child, std::size_t offset,
                          std::size_t stride, std::uint32_t elements = 1) {
  Field out = row_at(name, owner, offset, stride, elements);
  out.nested = &child;
  out.is_nested = true;
  return out;
}

// `bytes` raw bytes.
inline Field buffer_at(std::string_view name, std::uint64_t owner, std::size_t offset, std::uint32_t bytes) {
  Field out = row_at(name, owner, offset, bytes, 1);
  out.codec = &codec::buffer;
  out.bytes = bytes;
  return out;
}

// The first `count` of at most `capacity` bytes as one buffer; the count stands at `count_offset`.
inline Field counted_buffer_at(std::string_view name, std::uint64_t owner, std::size_t offset, std::uint32_t capacity,
                               CountType count, std::size_t count_offset) {
  Field out = row_at(name, owner, offset, 1, capacity);
  out.codec = &codec::buffer;
  out.count_is_bytes = true;
  out.is_counted = true;
  out.count_type = count;
  out.count_offset = count_offset;
  out.count_member = member_id_at(count_offset);
  return out;
}

// Makes an array (of field_at or structure_at) a counted one: its size is the capacity.
constexpr Field counted_by(Field row, CountType count, std::size_t count_offset) {
  row.is_counted = true;
  row.count_type = count;
  row.count_offset = count_offset;
  row.count_member = member_id_at(count_offset);
  return row;
}

constexpr Field unused_at(std::uint64_t owner, std::size_t bytes) {
  Field out{};
  out.name = "unused";
  out.owner = owner;
  out.codec = &codec::unused;
  out.has_operations = true;
  out.bytes = bytes;
  out.shared_name = true;
  return out;
}

}  // namespace migrationd::vmstate
