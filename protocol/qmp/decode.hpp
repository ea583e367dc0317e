// SPDX-License-Identifier: Apache-2.0
//
// Arguments from JSON, by the declarations of schema.hpp, with QEMU 10.0's error texts (qmp.md 5.3).
//
// Members are taken in the order of their declaration, unexpected ones are looked for at the end of each object, and
// the first problem met is the only one reported. Most texts name the member by its path ("channels[0].addr.port");
// enums and small integers name it bare, and an element of a list then reads 'null'. That is what QEMU does.
//
// Thread: pure functions. Input is hostile: depth is bounded by the types, size by what was parsed already.
#pragma once

#include "protocol/qmp/schema.hpp"

#include <concepts>
#include <limits>
#include <type_traits>
#include <utility>

namespace migrationd::qmp {

// Where the decoder stands, and the first problem it met.
class DecodeState {
 public:
  void enter(std::string_view member) { path_.push_back({member, 0}); }
  void enter(std::size_t index) { path_.push_back({{}, index}); }
  void leave() { path_.pop_back(); }

  const std::optional<QmpError>& error() const noexcept { return error_; }

  // All return false, to be passed on.
  bool missing(std::string_view member);
  bool unexpected(std::string_view member);
  bool wrong_type(std::string_view expected);    // "Invalid parameter type for 'a.b', expected: string"
  bool expects(std::string_view what);           // "Parameter 'a.b' expects uint64"
  bool expects_bare(std::string_view what);      // "Parameter 'b' expects uint8_t"
  bool unknown_value(const std::string& value);  // "Parameter 'b' does not accept value 'x'"

 private:
  struct Part {
    std::string_view member;  // empty: element `index`
    std::size_t index;
  };
  std::string path(std::string_view member = {}) const;
  std::string bare() const;
  bool fail(std::string text);

  std::vector<Part> path_;
  std::optional<QmpError> error_;
};

// The members of an object that somebody asked for; the others are unexpected.
struct KnownMembers {
  std::vector<std::string_view> names;
  bool unread = false;  // the rest belongs to a kind that is not built in
};

bool check_unexpected(DecodeState& state, const Json& object, const KnownMembers& known);
bool decode_signed(DecodeState& state, const Json& json, std::int64_t& out);
bool decode_unsigned(DecodeState& state, const Json& json, std::uint64_t& out);

template <class T>
bool decode_value(DecodeState& state, const Json& json, T& out);

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;

// Types with a decoder of their own: bool decode_object(DecodeState&, const Json& object, T&), found by lookup.
template <class T>
concept DecodesItself = requires(DecodeState& state, const Json& json, T& out) {
  { decode_object(state, json, out) } -> std::same_as<bool>;
};

namespace detail {

template <class T>
constexpr std::string_view small_integer_name() {
  if constexpr (std::is_same_v<T, std::uint8_t>) return "uint8_t";
  if constexpr (std::is_same_v<T, std::uint16_t>) return "uint16_t";
  if constexpr (std::is_same_v<T, std::uint32_t>) return "uint32_t";
  if constexpr (std::is_same_v<T, std::int32_t>) return "int32_t";
  return "";
}

template <class T>
bool decode_integer(DecodeState& state, const Json& json, T& out) {
  using Wide = std::conditional_t<std::is_signed_v<T>, std::int64_t, std::uint64_t>;
  Wide wide = 0;
  if constexpr (std::is_signed_v<T>) {
    if (!decode_signed(state, json, wide)) return false;
  } else {
    if (!decode_unsigned(state, json, wide)) return false;
  }
  if (!std::in_range<T>(wide)) return state.expects_bare(small_integer_name<T>());
  out = static_cast<T>(wide);
  return true;
}

template <class T>
bool decode_list(DecodeState& state, const Json& json, std::vector<T>& out) {
  if (!json.is_array()) return state.wrong_type("array");
  out.clear();
  for (std::size_t i = 0; i < json.size(); ++i) {
    state.enter(i);
    if (!decode_value(state, json[i], out.emplace_back())) return false;
    state.leave();
  }
  return true;
}

template <NamedEnum E>
bool decode_enum(DecodeState& state, const Json& json, E& out) {
  if (!json.is_string()) return state.wrong_type("string");
  const auto& text = json.get_ref<const std::string&>();
  const auto value = from_name<E>(text);
  if (!value) return state.unknown_value(text);
  out = *value;
  return true;
}

template <class Owner, class M>
bool decode_member(DecodeState& state, const Json& object, const M& member, Owner& out, KnownMembers& known) {
  using T = typename M::Type;
  known.names.push_back(member.name);
  const auto found = object.find(member.name);
  if (found == object.end()) return is_optional<T> ? true : state.missing(member.name);
  state.enter(member.name);
  bool ok = false;
  if constexpr (is_optional<T>) {
    ok = decode_value(state, *found, (out.*member.pointer).emplace());
  } else {
    ok = decode_value(state, *found, out.*member.pointer);
  }
  if (ok) state.leave();
  return ok;
}

template <class T>
bool decode_branch(DecodeState& state, const Json& object, T& out, KnownMembers& known);

template <Struct T>
bool decode_members(DecodeState& state, const Json& object, T& out, KnownMembers& known) {
  const bool ok = std::apply(
      [&](const auto&... member) { return (decode_member(state, object, member, out, known) && ...); }, T::members());
  if constexpr (Union<T>) return ok && decode_branch(state, object, out, known);
  return ok;
}

template <class T>
bool decode_branch(DecodeState& state, const Json& object, T& out, KnownMembers& known) {
  const auto tag = out.*T::tag();
  bool matched = false;
  bool ok = true;
  const auto try_row = [&](const auto& row) {
    if (matched || row.value != tag) return;
    matched = true;
    using Branch = typename std::remove_cvref_t<decltype(row)>::Type;
    ok = decode_members(state, object, out.u.template emplace<Branch>(), known);
  };
  std::apply([&](const auto&... row) { (try_row(row), ...); }, T::branches());
  using First = std::variant_alternative_t<0, decltype(out.u)>;
  if (!matched) {
    if constexpr (std::is_same_v<First, Unread>) known.unread = true;
    out.u.template emplace<0>();
  }
  return ok;
}

template <Struct T>
bool decode_struct(DecodeState& state, const Json& json, T& out) {
  if (!json.is_object()) return state.wrong_type("object");
  KnownMembers known;
  return decode_members(state, json, out, known) && check_unexpected(state, json, known);
}

}  // namespace detail

template <class T>
bool decode_value(DecodeState& state, const Json& json, T& out) {
  if constexpr (DecodesItself<T>) {
    return json.is_object() ? decode_object(state, json, out) : state.wrong_type("object");
  } else if constexpr (std::is_same_v<T, bool>) {
    if (!json.is_boolean()) return state.wrong_type("boolean");
    out = json.get<bool>();
    return true;
  } else if constexpr (std::is_same_v<T, std::string>) {
    if (!json.is_string()) return state.wrong_type("string");
    out = json.get_ref<const std::string&>();
    return true;
  } else if constexpr (std::is_integral_v<T>) {
    return detail::decode_integer(state, json, out);
  } else if constexpr (NamedEnum<T>) {
    return detail::decode_enum(state, json, out);
  } else if constexpr (is_vector<T>) {
    return detail::decode_list(state, json, out);
  } else if constexpr (std::is_same_v<T, StrOrNull>) {
    if (json.is_null()) {
      out.value.reset();
      return true;
    }
    if (!json.is_string()) return state.wrong_type("StrOrNull");
    out.value = json.get_ref<const std::string&>();
    return true;
  } else if constexpr (std::is_same_v<T, Any>) {
    out.value = json;
    return true;
  } else {
    static_assert(Struct<T>, "a type that no argument can have");
    return detail::decode_struct(state, json, out);
  }
}

// The arguments of a command. `arguments` is an object (the session machine has seen to that).
template <class T>
QmpResult<T> decode(const Json& arguments) {
  DecodeState state;
  T out;
  if (!decode_value(state, arguments, out)) return *state.error();
  return out;
}

}  // namespace migrationd::qmp
