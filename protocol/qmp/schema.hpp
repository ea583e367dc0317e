// SPDX-License-Identifier: Apache-2.0
//
// The vocabulary in which every QMP type is declared, once.
//
//   enum          name_table<E>: wire names in the order of the enumerators
//   struct        static constexpr auto members(): a tuple of req(...) and opt(...)
//   flat union    members() of its base, `tag`, and a std::variant `u`, whose alternatives are listed by
//                 branches(); on the wire the branch's members stand beside the base's
//   StrOrNull     the one alternate
//   Prebuilt<T>   a value that is JSON already, declared as if it were a T
//
// From these declarations come decoding with QEMU's error texts (decode.hpp), encoding (encode.hpp),
// query-qmp-schema (introspect.hpp) and the reference page (reference.hpp).
#pragma once

#include "protocol/qmp/error.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <variant>
#include <vector>

namespace migrationd::qmp {

// --- enums ----------------------------------------------------------------------------------------------

enum class Stability : std::uint8_t { stable, unstable, deprecated };

struct EnumName {
  std::string_view text;
  Stability stability = Stability::stable;
  constexpr EnumName(const char* name) : text(name) {}  // NOLINT: tables read better without the type's name
  constexpr EnumName(const char* name, Stability s) : text(name), stability(s) {}
};

template <class E, std::size_t N>
struct NameTable {
  std::string_view type_name;
  std::array<EnumName, N> names;
};

// Fails to compile when the table does not end at the enum's last enumerator.
template <class E, std::size_t N>
consteval NameTable<E, N> names_up_to(E last, std::string_view type_name, const EnumName (&names)[N]) {
  if (static_cast<std::size_t>(last) + 1 != N) throw "the name table and the enum differ in length";
  return [&]<std::size_t... I>(std::index_sequence<I...>) { return NameTable<E, N>{type_name, {names[I]...}}; }
  (std::make_index_sequence<N>());
}

template <class E>
inline constexpr std::nullptr_t name_table{};

template <class E>
concept NamedEnum = requires {
  name_table<E>.names;
};

template <NamedEnum E>
constexpr std::string_view to_name(E value) {
  return name_table<E>.names[static_cast<std::size_t>(value)].text;
}

template <NamedEnum E>
constexpr std::optional<E> from_name(std::string_view text) {
  for (std::size_t i = 0; i < name_table<E>.names.size(); ++i)
    if (name_table<E>.names[i].text == text) return static_cast<E>(i);
  return std::nullopt;
}

template <NamedEnum E>
inline constexpr std::size_t enum_size = name_table<E>.names.size();

// --- structs --------------------------------------------------------------------------------------------

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

template <class Owner, class T>
struct Member {
  using Type = T;
  std::string_view name;
  T Owner::*pointer;
  std::string_view text;  // one sentence for the reference page
  Stability stability = Stability::stable;
  constexpr Member unstable() const { return {name, pointer, text, Stability::unstable}; }
  constexpr Member deprecated() const { return {name, pointer, text, Stability::deprecated}; }
};

template <class Owner, class T>
constexpr Member<Owner, T> req(std::string_view name, T Owner::*pointer, std::string_view text = "") {
  static_assert(!is_optional<T>, "a mandatory member cannot be std::optional");
  return {name, pointer, text};
}

template <class Owner, class T>
constexpr Member<Owner, T> opt(std::string_view name, T Owner::*pointer, std::string_view text = "") {
  static_assert(is_optional<T>, "an optional member must be std::optional");
  return {name, pointer, text};
}

template <class T>
concept Struct = requires {
  T::members();
};

// No members: arguments of commands that take none, results of those that return {}.
struct Empty {
  static constexpr std::string_view type_name = "Empty";
  static constexpr auto members() { return std::make_tuple(); }
  bool operator==(const Empty&) const = default;
};

// --- flat unions ----------------------------------------------------------------------------------------

// One row of branches(): when the tag has `value`, the variant holds a `Branch`. Tag values without a row have no
// further members and hold Empty.
template <class Branch, class E>
struct BranchRow {
  using Type = Branch;
  E value;
};

template <class Branch, class E>
constexpr BranchRow<Branch, E> branch(E value) {
  return {value};
}

// A union's tag is one of its members(); `tag()` says which.
template <class T>
concept Union = Struct<T> && requires {
  T::branches();
};

// --- other kinds ----------------------------------------------------------------------------------------

// A string, or null. On the parameters that have it null means the same as "" (qmp.md 10.2).
struct StrOrNull {
  std::optional<std::string> value;  // empty: null
};

// JSON of any type: `any` in the schema.
struct Any {
  Json value;
};

// Encoded already; the schema shows T.
template <class T>
struct Prebuilt {
  OrderedJson json;
};

// A list of block devices or nodes: a migration daemon has none. Sent as []; the schema shows QEMU's whole type
// (block_schema.cpp), of which no instance can exist here.
struct NoBlockDevices {
  static constexpr std::string_view fragment = "BlockInfo";
};
struct NoBlockNodes {
  static constexpr std::string_view fragment = "BlockDeviceInfo";
};

// Members of an object whose kind is known but not built in: accepted unread, refused by name (qmp.md 13).
struct Unread {};

}  // namespace migrationd::qmp
