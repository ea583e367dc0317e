// SPDX-License-Identifier: Apache-2.0
//
// Results and event data to JSON, by the declarations of schema.hpp. Optional members that are unset are left out.
//
// Thread: pure functions.
#pragma once

#include "protocol/qmp/schema.hpp"

#include <concepts>
#include <type_traits>

namespace migrationd::qmp {

template <class T>
OrderedJson encode(const T& value);

// Types with an encoder of their own: OrderedJson encode_object(const T&), found by lookup.
template <class T>
concept EncodesItself = requires(const T& value) {
  { encode_object(value) } -> std::same_as<OrderedJson>;
};

namespace detail {

template <class T>
inline constexpr bool is_list = false;
template <class T>
inline constexpr bool is_list<std::vector<T>> = true;
template <class T>
inline constexpr bool is_prebuilt = false;
template <class T>
inline constexpr bool is_prebuilt<Prebuilt<T>> = true;

template <class Owner, class M>
void encode_member(const Owner& owner, const M& member, OrderedJson& out) {
  const auto& value = owner.*member.pointer;
  if constexpr (is_optional<typename M::Type>) {
    if (value) out[std::string(member.name)] = encode(*value);
  } else {
    out[std::string(member.name)] = encode(value);
  }
}

template <Struct T>
void encode_members(const T& value, OrderedJson& out) {
  std::apply([&](const auto&... member) { (encode_member(value, member, out), ...); }, T::members());
  if constexpr (Union<T>) {
    std::visit(
        [&](const auto& branch_value) {
          if constexpr (Struct<std::remove_cvref_t<decltype(branch_value)>>) encode_members(branch_value, out);
        },
        value.u);
  }
}

}  // namespace detail

template <class T>
OrderedJson encode(const T& value) {
  if constexpr (EncodesItself<T>) {
    return encode_object(value);
  } else if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
    return value;
  } else if constexpr (NamedEnum<T>) {
    return std::string(to_name(value));
  } else if constexpr (detail::is_list<T>) {
    OrderedJson out = OrderedJson::array();
    for (const auto& element : value) out.push_back(encode(element));
    return out;
  } else if constexpr (detail::is_prebuilt<T>) {
    return value.json;
  } else if constexpr (std::is_same_v<T, Any>) {
    return OrderedJson(value.value);
  } else if constexpr (std::is_same_v<T, NoBlockDevices> || std::is_same_v<T, NoBlockNodes>) {
    return OrderedJson::array();
  } else {
    static_assert(Struct<T>, "a type that no result can have");
    OrderedJson out = OrderedJson::object();
    detail::encode_members(value, out);
    return out;
  }
}

}  // namespace migrationd::qmp
