// SPDX-License-Identifier: Apache-2.0
//
// Rows beyond the members of vmstate/field.hpp: values that must agree, bitmaps, parts of arrays, elements behind
// pointers, arrays the loader makes, arrays of pointers, lists, trees, views, structs with a version of their own,
// validations (docs/formats/vmstate.md, "Shapes").
//
// Where a number from the wire decides how much memory a loader takes (allocated arrays, lists, trees), the row has a
// bound; give it a name where the state struct is. A count above it ends the load before anything is made.
//
// What the format does not say, the receiver has to know: which slots of an array of pointers are null, how long a
// plain pointer's array is. A row that refers to others' memory (T*, span) needs it to be there when it is loaded.
//
// Thread: constants.
#pragma once

#include "vmstate/description.hpp"
#include "vmstate/storage.hpp"

#include <deque>
#include <list>
#include <map>

namespace migrationd::vmstate {

namespace detail {

template <class T>
inline constexpr const Codec* equal_codec = nullptr;
template <>
inline constexpr const Codec* equal_codec<std::uint8_t> = &codec::u8_equal;
template <>
inline constexpr const Codec* equal_codec<std::uint16_t> = &codec::u16_equal;
template <>
inline constexpr const Codec* equal_codec<std::int32_t> = &codec::i32_equal;
template <>
inline constexpr const Codec* equal_codec<std::uint32_t> = &codec::u32_equal;
template <>
inline constexpr const Codec* equal_codec<std::uint64_t> = &codec::u64_equal;

template <class T>
inline constexpr bool has_equal =
    std::is_same_v<T, std::uint8_t> || std::is_same_v<T, std::uint16_t> || std::is_same_v<T, std::int32_t> ||
    std::is_same_v<T, std::uint32_t> || std::is_same_v<T, std::uint64_t>;

template <auto Member>
using HeldBy = typename Held<ValueOf<Member>>::Type;

// A member that elements hang off.
template <auto Member>
constexpr FieldOf<OwnerOf<Member>> outside_row(std::string_view name, std::uint32_t capacity) {
  FieldOf<OwnerOf<Member>> out{};
  out.name = name;
  out.owner = type_id<OwnerOf<Member>>;
  out.address = &address_of<Member>;
  out.member = member_id<Member>;
  out.storage = &storage<ValueOf<Member>>;
  out.is_outside = true;
  out.stride = sizeof(HeldBy<Member>);
  out.capacity = capacity;
  return out;
}

template <auto Count, class Row>
constexpr Row count_by(Row row) {
  static_assert(is_count<ValueOf<Count>>, "a count is u8, u16, u32 or i32");
  row.is_counted = true;
  row.count = &count_of<Count>;
  row.count_member = member_id<Count>;
  return row;
}

template <auto Member, class Row>
constexpr Row made(Row row) {
  row.storage = &made_storage<ValueOf<Member>>;
  row.loader_allocates = true;
  return row;
}

template <class T, class Row>
constexpr Row of_codec(Row row) {
  row.codec = codec_of<T>;
  row.has_operations = has_codec<T>;
  return row;
}

template <class Row>
constexpr Row of_struct(Row row, const Description& child) {
  row.nested = &child;
  row.is_nested = true;
  row.has_operations = true;
  return row;
}

template <class Row>
constexpr Row of_bytes(Row row) {
  row.codec = &codec::buffer;
  row.has_operations = true;
  return row;
}

template <class Row>
constexpr Row of_bits(Row row) {
  row.codec = &codec::bitmap;
  row.has_operations = true;
  row.is_bitmap = true;
  return row;
}

}  // namespace detail

// --- values ----------------------------------------------------------------------------------------------

// A value (or array of them) that both sides must have: loading compares. `hint` is for the user when they differ.
template <auto Member>
constexpr auto equal(std::string_view name, std::string_view hint = {}) {
  auto out = detail::row<Member>(name);
  out.codec = detail::equal_codec<detail::ElementOf<Member>>;
  out.has_operations = detail::has_equal<detail::ElementOf<Member>>;
  out.hint = hint;
  return out;
}

// An i32 that may come as 0 up to what the object has.
template <auto Member>
constexpr auto at_most_now(std::string_view name) {
  static_assert(std::is_same_v<detail::ElementOf<Member>, std::int32_t>, "int32 le");
  auto out = detail::row<Member>(name);
  out.codec = &codec::i32_le;
  out.has_operations = true;
  return out;
}

// `Predicate` must hold on both sides; nothing on the wire. It sees the object as far as it is loaded.
template <class Owner, auto Predicate>
constexpr FieldOf<Owner> validate(std::string_view name) {
  FieldOf<Owner> out{};
  out.name = name;
  out.owner = type_id<Owner>;
  out.codec = &codec::unused;
  out.has_operations = true;
  out.capacity = 0;
  return out.template when<Predicate>().required();
}

// --- bitmaps: u64 words, bit n is bit n % 64 of word n / 64 ------------------------------------------------

template <auto Member>
constexpr auto bitmap(std::string_view name, std::size_t bits = detail::Elements<detail::ValueOf<Member>>::count * 64) {
  static_assert(std::is_same_v<detail::ElementOf<Member>, std::uint64_t>, "a bitmap is made of u64 words");
  auto out = detail::of_bits(detail::row<Member>(name));
  // More bits than words is a row without elements: check() finds it.
  out.capacity = bits <= std::size_t{out.capacity} * 64 ? 1 : 0;
  out.bytes = bits;
  return out;
}

// A vector of words, made by the loader for the bits counted.
template <auto Member, auto Count>
constexpr auto allocated_bitmap(std::string_view name, std::uint32_t bound_bits) {
  static_assert(std::is_same_v<detail::HeldBy<Member>, std::uint64_t>, "a bitmap is made of u64 words");
  return detail::count_by<Count>(detail::made<Member>(detail::of_bits(detail::outside_row<Member>(name, bound_bits))));
}

// --- parts of arrays in the object -----------------------------------------------------------------------

// `Number` elements from index `Start` on.
template <auto Member, std::size_t Start, std::size_t Number>
constexpr auto part(std::string_view name) {
  auto out = detail::of_codec<detail::ElementOf<Member>>(detail::row<Member>(name));
  static_assert(Start + Number <= detail::Elements<detail::ValueOf<Member>>::count, "outside the array");
  out.start = Start * out.stride;
  out.capacity = Number;
  return out;
}
template <auto Member, std::size_t Start, std::size_t Number>
constexpr auto part(std::string_view name, const DescriptionOf<detail::ElementOf<Member>>& child) {
  auto out = detail::of_struct(detail::row<Member>(name), child);
  static_assert(Start + Number <= detail::Elements<detail::ValueOf<Member>>::count, "outside the array");
  out.start = Start * out.stride;
  out.capacity = Number;
  return out;
}

// Bytes [Start, End) as one buffer.
template <auto Member, std::size_t Start, std::size_t End>
constexpr auto partial_buffer(std::string_view name) {
  static_assert(detail::is_byte<detail::ElementOf<Member>>, "a buffer is an array of bytes");
  static_assert(Start < End && End <= detail::Elements<detail::ValueOf<Member>>::count, "outside the array");
  auto out = detail::of_bytes(detail::row<Member>(name));
  out.start = Start;
  out.bytes = End - Start;
  out.capacity = 1;
  return out;
}

// --- behind a pointer: T*, unique_ptr, vector, string, span ------------------------------------------------

// One value. A unique_ptr that is empty is filled by the loader; a plain pointer must not be null.
template <auto Member>
constexpr auto pointer(std::string_view name) {
  auto out = detail::of_codec<detail::HeldBy<Member>>(detail::outside_row<Member>(name, 1));
  if constexpr (!std::is_pointer_v<detail::ValueOf<Member>>) out = detail::made<Member>(out);
  return out;
}
template <auto Member>
constexpr auto pointer(std::string_view name, const DescriptionOf<detail::HeldBy<Member>>& child) {
  auto out = detail::of_struct(detail::outside_row<Member>(name, 1), child);
  if constexpr (!std::is_pointer_v<detail::ValueOf<Member>>) out = detail::made<Member>(out);
  return out;
}

// A known number of elements that are there already.
template <auto Member>
constexpr auto pointed(std::string_view name, std::uint32_t number) {
  return detail::of_codec<detail::HeldBy<Member>>(detail::outside_row<Member>(name, number));
}
template <auto Member>
constexpr auto pointed(std::string_view name, std::uint32_t number,
                       const DescriptionOf<detail::HeldBy<Member>>& child) {
  return detail::of_struct(detail::outside_row<Member>(name, number), child);
}

// The first Count of elements that are there already, at most `bound`.
template <auto Member, auto Count>
constexpr auto pointed_counted(std::string_view name, std::uint32_t bound) {
  return detail::count_by<Count>(pointed<Member>(name, bound));
}
template <auto Member, auto Count>
constexpr auto pointed_counted(std::string_view name, std::uint32_t bound,
                               const DescriptionOf<detail::HeldBy<Member>>& child) {
  return detail::count_by<Count>(pointed<Member>(name, bound, child));
}

// Count elements, made by the loader: at most `bound`.
template <auto Member, auto Count>
constexpr auto allocated(std::string_view name, std::uint32_t bound) {
  return detail::made<Member>(pointed_counted<Member, Count>(name, bound));
}
template <auto Member, auto Count>
constexpr auto allocated(std::string_view name, std::uint32_t bound,
                         const DescriptionOf<detail::HeldBy<Member>>& child) {
  return detail::made<Member>(pointed_counted<Member, Count>(name, bound, child));
}

// Count bytes behind a pointer as one buffer: there already, or made by the loader.
template <auto Member, auto Count>
constexpr auto pointed_buffer(std::string_view name, std::uint32_t bound) {
  static_assert(detail::is_byte<detail::HeldBy<Member>>, "a buffer is made of bytes");
  auto out = detail::count_by<Count>(detail::of_bytes(detail::outside_row<Member>(name, bound)));
  out.count_is_bytes = true;
  return out;
}
template <auto Member, auto Count>
constexpr auto allocated_buffer(std::string_view name, std::uint32_t bound) {
  return detail::made<Member>(pointed_buffer<Member, Count>(name, bound));
}

// --- arrays of pointers ----------------------------------------------------------------------------------

// Each slot's element, or the null marker. Loading fills what the slots refer to and never makes it.
template <auto Member>
constexpr auto pointers(std::string_view name) {
  using Slot = detail::ElementOf<Member>;
  auto out = detail::of_codec<typename detail::Held<Slot>::Type>(detail::row<Member>(name));
  out.shape = &shape::pointers;
  out.slot = &storage<Slot>;
  return out;
}
template <auto Member>
constexpr auto pointers(std::string_view name,
                        const DescriptionOf<typename detail::Held<detail::ElementOf<Member>>::Type>& child) {
  auto out = detail::of_struct(detail::row<Member>(name), child);
  out.shape = &shape::pointers;
  out.slot = &storage<detail::ElementOf<Member>>;
  return out;
}
// The first Count slots.
template <auto Member, auto Count>
constexpr auto counted_pointers(std::string_view name) {
  return detail::count_by<Count>(pointers<Member>(name));
}
template <auto Member, auto Count>
constexpr auto counted_pointers(std::string_view name,
                                const DescriptionOf<typename detail::Held<detail::ElementOf<Member>>::Type>& child) {
  return detail::count_by<Count>(pointers<Member>(name, child));
}

// --- structs of other kinds ------------------------------------------------------------------------------

// A nested struct written and read as `version` of its description, whatever that is at by now.
template <auto Member>
constexpr auto versioned_structure(std::string_view name, const DescriptionOf<detail::ElementOf<Member>>& child,
                                   std::uint32_t version) {
  auto out = detail::of_struct(detail::row<Member>(name), child);
  out.is_versioned = true;
  out.struct_version = version;
  return out;
}

namespace detail {

template <class Owner, class View>
Result<void> with_view(const Field& /*row*/, void* object, const ElementCall& call) {
  View view(*static_cast<Owner*>(object));
  return call(&view);
}
template <class Owner, class View>
inline constexpr ViewOperations view_operations{&with_view<Owner, View>};

}  // namespace detail

// A struct that is only made for the wire: View(Owner&) refers to its owner, its pre_save fills it and its post_load
// carries what came over. No bytes of its own.
template <class Owner, class View>
constexpr FieldOf<Owner> view(std::string_view name, const DescriptionOf<View>& child) {
  FieldOf<Owner> out = detail::of_struct(FieldOf<Owner>{}, child);
  out.name = name;
  out.owner = type_id<Owner>;
  out.shape = &shape::view;
  out.type_name = "tmp";
  out.view = &detail::view_operations<Owner, View>;
  return out;
}

// --- lists and trees -------------------------------------------------------------------------------------

namespace detail {

template <class T>
std::size_t size_of_sequence(const Field& /*row*/, const void* container) {
  return static_cast<const T*>(container)->size();
}
template <class T>
Result<void> each_of_sequence(const Field& /*row*/, void* container, const ElementCall& call) {
  for (auto& element : *static_cast<T*>(container)) MD_CHECK(call(&element));
  return {};
}
template <class T>
void clear_container(const Field& /*row*/, void* container) {
  static_cast<T*>(container)->clear();
}
template <class T>
Result<void> append_to_sequence(const Field& /*row*/, void* container, const ElementCall& fill) {
  return fill(&static_cast<T*>(container)->emplace_back());
}
template <class T>
inline constexpr SequenceOperations sequence_operations{&size_of_sequence<T>, &each_of_sequence<T>, &clear_container<T>,
                                                        &append_to_sequence<T>};

template <class T>
Result<void> each_of_tree(const Field& /*row*/, void* container, const PairCall& call) {
  for (auto& [key, value] : *static_cast<T*>(container)) {
    auto copy = key;
    MD_CHECK(call(&copy, &value));
  }
  return {};
}
template <class T>
Result<void> insert_into_tree(const Field& /*row*/, void* container, const PairCall& fill) {
  typename T::key_type key{};
  typename T::mapped_type value{};
  MD_CHECK(fill(&key, &value));
  if (static_cast<T*>(container)->try_emplace(std::move(key), std::move(value)).second) return {};
  return wire_error("the same key twice");
}
template <class T>
inline constexpr TreeOperations tree_operations{&size_of_sequence<T>, &each_of_tree<T>, &clear_container<T>,
                                                &insert_into_tree<T>};

template <auto Member>
constexpr auto sequence_row(std::string_view name, const Description& child, std::uint32_t bound,
                            std::string_view type) {
  using Container = ValueOf<Member>;
  FieldOf<OwnerOf<Member>> out = of_struct(FieldOf<OwnerOf<Member>>{}, child);
  out.name = name;
  out.owner = type_id<OwnerOf<Member>>;
  out.address = &address_of<Member>;
  out.member = member_id<Member>;
  out.shape = &shape::sequence;
  out.sequence = &sequence_operations<Container>;
  out.type_name = type;
  out.capacity = bound;
  out.stride = sizeof(typename Container::value_type);
  return out;
}

template <auto Member>
constexpr auto tree_row(std::string_view name, const Description& value, std::uint32_t bound) {
  using Container = ValueOf<Member>;
  FieldOf<OwnerOf<Member>> out = of_struct(FieldOf<OwnerOf<Member>>{}, value);
  out.name = name;
  out.owner = type_id<OwnerOf<Member>>;
  out.address = &address_of<Member>;
  out.member = member_id<Member>;
  out.shape = &shape::tree;
  out.tree = &tree_operations<Container>;
  out.type_name = "gtree";
  out.capacity = bound;
  out.stride = sizeof(typename Container::value_type);
  return out;
}

}  // namespace detail

// A std::list, deque or vector of structs, at most `bound`; emptied before it is loaded. The elements are read as the
// field's version (`since`).
template <auto Member>
constexpr auto queue(std::string_view name, const DescriptionOf<typename detail::ValueOf<Member>::value_type>& child,
                     std::uint32_t bound) {
  return detail::sequence_row<Member>(name, child, bound, "qtailq");
}
// The same by its other name in the description.
template <auto Member>
constexpr auto list(std::string_view name, const DescriptionOf<typename detail::ValueOf<Member>::value_type>& child,
                    std::uint32_t bound) {
  return detail::sequence_row<Member>(name, child, bound, "qlist");
}

// A std::map from a struct, or from a u64, at most `bound` nodes; emptied before it is loaded.
template <auto Member>
constexpr auto tree(std::string_view name, const DescriptionOf<typename detail::ValueOf<Member>::key_type>& key,
                    const DescriptionOf<typename detail::ValueOf<Member>::mapped_type>& value, std::uint32_t bound) {
  auto out = detail::tree_row<Member>(name, value, bound);
  out.key = &key;
  out.has_key = true;
  return out;
}
template <auto Member>
constexpr auto tree(std::string_view name, const DescriptionOf<typename detail::ValueOf<Member>::mapped_type>& value,
                    std::uint32_t bound) {
  static_assert(std::is_same_v<typename detail::ValueOf<Member>::key_type, std::uint64_t>, "a direct key is a u64");
  return detail::tree_row<Member>(name, value, bound);
}

}  // namespace migrationd::vmstate
