// SPDX-License-Identifier: Apache-2.0
//
// Field: one row of a device's table.
//
// A row is plain data: a name, the version that added it, and a handful of function pointers made from the
// pointer to member that the row was built from. Nothing of the state struct's type remains in it, so the
// engine is one loop over rows and not a template. Rows are built beside the state struct:
//
//     inline constexpr vmstate::Field clock_fields[] = {
//         vmstate::field<&Clock::ticks>("ticks"),
//         vmstate::field<&Clock::alarm>("alarm").since(2),
//         vmstate::counted<&Clock::laps, &Clock::lap_count>("laps"),
//         vmstate::structure<&Clock::zone>("zone", zone_description),
//     };
//
// Here are the rows whose elements lie in the object; pointers, allocated arrays, lists, trees, views and the rest are
// in vmstate/shapes.hpp.
//
// What is not on the wire (docs/formats/vmstate.md): names, counts, and whether a field is there at all. A count
// is another member that stands earlier in the table. A predicate (`when`) decides alone about existence and runs
// on both sides, on the reader's side over the object as far as it is loaded.
//
// Tables can also be made at run time, from byte offsets: vmstate/runtime.hpp.
//
// Thread: constants.
#pragma once

#include "vmstate/shape.hpp"
#include "vmstate/types.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>
#include <type_traits>

namespace migrationd::vmstate {

struct Description;
template <class T>
struct DescriptionOf;

namespace detail {

constexpr std::uint64_t hash(std::string_view text) {
  std::uint64_t value = 0xcbf29ce484222325U;  // FNV-1a
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return value;
}

template <class T>
constexpr std::uint64_t type_hash() {
  return hash(__PRETTY_FUNCTION__);
}

template <auto Member>
constexpr std::uint64_t member_hash() {
  return hash(__PRETTY_FUNCTION__);
}

}  // namespace detail

// Numbers that stand for a type and for a member: what check() compares to find a row in the wrong table. Made from
// names: addresses would do, but with -fsanitize=undefined GCC 12 does not compare them while compiling.
template <class T>
inline constexpr std::uint64_t type_id = detail::type_hash<T>();
template <auto Member>
inline constexpr std::uint64_t member_id = detail::member_hash<Member>();

// A row without storage (unused): neither address nor offset.
inline constexpr std::size_t no_offset = ~std::size_t{0};

// The type of a count that is reached by its offset.
enum class CountType : std::uint8_t { none, u8, u16, u32, i32 };

// Every version from `Field::version` on.
inline constexpr std::uint32_t every_version = 0x7fffffff;

struct Field {
  std::string_view name;
  std::uint32_t version = 0;                   // streams of this description version and newer have it
  std::uint32_t last_version = every_version;  // and newer ones than this no longer
  std::uint64_t owner = 0;                     // type_id of the state struct

  // What an element is.
  const Codec* codec = nullptr;  // null when nested
  const Description* nested = nullptr;
  const Description* key = nullptr;  // tree: the key's description; null: a u64
  std::uint32_t struct_version = 0;  // of a nested struct with a version of its own
  std::string_view type_name;        // in the description, for shapes that choose it (qtailq, qlist)
  std::string_view hint;             // what a user can do when an "equal" differs

  // Where the elements are.
  const Shape* shape = &shape::flat;
  void* (*address)(void* object) = nullptr;  // of the member; null: `offset` says
  std::size_t offset = no_offset;            // bytes from the object's start, for rows made at run time
  std::size_t start = 0;                     // bytes from element 0 to the first one sent (parts of arrays)
  const Storage* storage = nullptr;          // how the elements hang off the member; null: they are there
  const Storage* slot = nullptr;             // pointers: how the element hangs off one slot
  const SequenceOperations* sequence = nullptr;
  const TreeOperations* tree = nullptr;
  const ViewOperations* view = nullptr;
  std::size_t stride = 0;      // bytes from element (or slot) to element in memory
  std::uint32_t capacity = 1;  // elements in memory; bytes, if count_is_bytes; bits, if is_bitmap
  std::size_t bytes = 0;       // wire bytes of one element, for codecs without a length of their own; bits of a bitmap

  // How many there are, and whether at all.
  bool (*exists)(const void* object, std::uint32_t version) = nullptr;
  std::int64_t (*count)(const void* object) = nullptr;  // null: by `count_type`, else always `capacity` elements
  CountType count_type = CountType::none;               // of the member at `count_offset`, for rows made at run time
  std::size_t count_offset = 0;
  std::uint32_t count_factor = 1;  // elements per count
  std::uint64_t member = 0;        // member_id; 0: unused
  std::uint64_t count_member = 0;  // member_id of the one that `count` reads
  bool count_is_bytes = false;     // one buffer of `count` bytes
  bool is_bitmap = false;          // `count` or `bytes` are bits
  bool shared_name = false;        // another row has the same name, on purpose
  bool must_exist = false;         // absence is an error

  // What the pointers above hold, for check(): see has_codec.
  bool has_operations = false;  // codec or nested
  bool is_nested = false;
  bool has_key = false;
  bool has_predicate = false;
  bool is_counted = false;
  bool is_versioned = false;      // nested, with struct_version
  bool is_outside = false;        // storage: the elements are not in the object
  bool loader_allocates = false;  // storage->make
  // Free for whoever makes rows at run time; the library does not look at it.
  const void* context = nullptr;
};

// The address of a row's member in `object` (its first element, where no Storage stands between); null: the row has
// no storage.
inline std::byte* element_address(const Field& row, void* object) {
  if (row.address != nullptr) return static_cast<std::byte*>(row.address(object));
  return row.offset != no_offset ? static_cast<std::byte*>(object) + row.offset : nullptr;
}

namespace detail {

template <class T>
struct MemberPointer;
template <class Owner_, class Value_>
struct MemberPointer<Value_ Owner_::*> {
  using Owner = Owner_;
  using Value = Value_;
};
template <auto Member>
using OwnerOf = typename MemberPointer<std::remove_cv_t<decltype(Member)>>::Owner;
template <auto Member>
using ValueOf = typename MemberPointer<std::remove_cv_t<decltype(Member)>>::Value;

// The innermost element type and the number of elements of a (nested) array; a scalar is one element.
template <class T>
struct Elements {
  using Type = T;
  static constexpr std::size_t count = 1;
};
template <class T, std::size_t N>
struct Elements<T[N]> {
  using Type = typename Elements<T>::Type;
  static constexpr std::size_t count = N * Elements<T>::count;
};
template <class T, std::size_t N>
struct Elements<std::array<T, N>> {
  static_assert(sizeof(std::array<T, N>) == N * sizeof(T));
  using Type = typename Elements<T>::Type;
  static constexpr std::size_t count = N * Elements<T>::count;
};
template <auto Member>
using ElementOf = typename Elements<ValueOf<Member>>::Type;

template <auto Member>
void* address_of(void* object) {
  return &(static_cast<OwnerOf<Member>*>(object)->*Member);
}

template <auto Member>
std::int64_t count_of(const void* object) {
  return static_cast<std::int64_t>(static_cast<const OwnerOf<Member>*>(object)->*Member);
}

template <class T>
inline constexpr bool is_count = std::is_same_v<T, std::uint8_t> || std::is_same_v<T, std::uint16_t> ||
                                 std::is_same_v<T, std::uint32_t> || std::is_same_v<T, std::int32_t>;

template <class T>
inline constexpr bool is_byte =
    std::is_same_v<T, std::byte> || std::is_same_v<T, char> || std::is_same_v<T, std::uint8_t>;

template <auto Predicate, class Owner>
bool predicate(const void* object, std::uint32_t version) {
  const Owner& owner = *static_cast<const Owner*>(object);
  if constexpr (std::is_invocable_v<decltype(Predicate), const Owner&, std::uint32_t>) {
    return std::invoke(Predicate, owner, version);
  } else {
    return std::invoke(Predicate, owner);
  }
}

}  // namespace detail

// A Field while it is being built; a table of Fields keeps the base only.
template <class Owner>
struct FieldOf : Field {
  // Belongs to streams of this version of the description and newer.
  constexpr FieldOf since(std::uint32_t added) const {
    FieldOf out = *this;
    out.version = added;
    return out;
  }
  // Streams newer than this version of the description no longer have it.
  constexpr FieldOf until(std::uint32_t last) const {
    FieldOf out = *this;
    out.last_version = last;
    return out;
  }
  // The array has `factor` elements for each one counted.
  constexpr FieldOf times(std::uint32_t factor) const {
    FieldOf out = *this;
    out.count_factor = factor;
    return out;
  }
  // Where the predicate says that it is not there, the state is refused.
  constexpr FieldOf required() const {
    FieldOf out = *this;
    out.must_exist = true;
    return out;
  }
  // `Predicate` decides alone about existence: callable with (const Owner&[, u32 version]), returns bool.
  template <auto Predicate>
  constexpr FieldOf when() const {
    FieldOf out = *this;
    out.exists = &detail::predicate<Predicate, Owner>;
    out.has_predicate = true;
    return out;
  }
  // Says that the name stands more than once in the table on purpose (one field in several widths, chosen by
  // predicates). The description then numbers the occurrences: name[0], name[1].
  constexpr FieldOf shares_name() const {
    FieldOf out = *this;
    out.shared_name = true;
    return out;
  }
};

namespace detail {

template <auto Member>
constexpr FieldOf<OwnerOf<Member>> row(std::string_view name) {
  using Shape = Elements<ValueOf<Member>>;
  static_assert(Shape::count <= 0xffffffffU);
  FieldOf<OwnerOf<Member>> out{};
  out.name = name;
  out.owner = type_id<OwnerOf<Member>>;
  out.address = &address_of<Member>;
  out.member = member_id<Member>;
  out.stride = sizeof(ElementOf<Member>);
  out.capacity = static_cast<std::uint32_t>(Shape::count);
  return out;
}

template <auto Member, auto Count>
constexpr FieldOf<OwnerOf<Member>> counted_row(std::string_view name) {
  static_assert(std::is_same_v<OwnerOf<Member>, OwnerOf<Count>>, "the count is a member of the same struct");
  static_assert(is_count<ValueOf<Count>>, "a count is u8, u16, u32 or i32");
  auto out = row<Member>(name);
  out.is_counted = true;
  out.count = &count_of<Count>;
  out.count_member = member_id<Count>;
  return out;
}

}  // namespace detail

// An integer, a bool, a double, a timer, or a fixed array (of any rank, row by row) of them.
template <auto Member>
constexpr auto field(std::string_view name) {
  auto out = detail::row<Member>(name);
  out.codec = codec_of<detail::ElementOf<Member>>;
  out.has_operations = has_codec<detail::ElementOf<Member>>;
  return out;
}

// The first Count elements of an array. Count is another member, described earlier (or fixed by configuration).
// Loading compares it with the array's size before anything is stored.
template <auto Member, auto Count>
constexpr auto counted(std::string_view name) {
  auto out = detail::counted_row<Member, Count>(name);
  out.codec = codec_of<detail::ElementOf<Member>>;
  out.has_operations = has_codec<detail::ElementOf<Member>>;
  return out;
}

// A nested struct, or a fixed array of structs.
template <auto Member>
constexpr auto structure(std::string_view name, const DescriptionOf<detail::ElementOf<Member>>& child) {
  auto out = detail::row<Member>(name);
  out.nested = &child;
  out.is_nested = true;
  out.has_operations = true;
  return out;
}

// The first Count structs of an array.
template <auto Member, auto Count>
constexpr auto counted_structures(std::string_view name, const DescriptionOf<detail::ElementOf<Member>>& child) {
  auto out = detail::counted_row<Member, Count>(name);
  out.nested = &child;
  out.is_nested = true;
  out.has_operations = true;
  return out;
}

// Raw bytes; the size is not on the wire.
template <auto Member>
constexpr auto buffer(std::string_view name) {
  static_assert(detail::is_byte<detail::ElementOf<Member>>, "a buffer is an array of bytes");
  auto out = detail::row<Member>(name);
  out.codec = &codec::buffer;
  out.has_operations = true;
  out.bytes = out.capacity;
  out.capacity = 1;
  return out;
}

// The first Count bytes of a byte array, as one buffer.
template <auto Member, auto Count>
constexpr auto counted_buffer(std::string_view name) {
  static_assert(detail::is_byte<detail::ElementOf<Member>>, "a buffer is an array of bytes");
  auto out = detail::counted_row<Member, Count>(name);
  out.codec = &codec::buffer;
  out.has_operations = true;
  out.count_is_bytes = true;
  return out;
}

// The place of a dropped field of the same size on the wire: zeros when written, skipped when read.
template <class Owner>
constexpr FieldOf<Owner> unused(std::size_t bytes) {
  FieldOf<Owner> out{};
  out.name = "unused";
  out.owner = type_id<Owner>;
  out.codec = &codec::unused;
  out.has_operations = true;
  out.bytes = bytes;
  out.shared_name = true;
  return out;
}

}  // namespace migrationd::vmstate
