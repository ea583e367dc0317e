// SPDX-License-Identifier: Apache-2.0
//
// Storages: how elements hang off a pointer, a unique_ptr, a vector, a string or a span. What each needs is in
// vmstate/shape.hpp; these are the constants that vmstate/shapes.hpp puts into rows.
//
// Thread: stateless.
#pragma once

#include "vmstate/field.hpp"

#include <concepts>
#include <memory>
#include <span>

namespace migrationd::vmstate {

namespace detail {

// What hangs off a member of type T.
template <class T>
struct Held;  // no pointer, vector or span: such a member holds its elements itself
template <class T>
struct Held<T*> {
  using Type = T;
  static void* first(void* member) { return *static_cast<T**>(member); }
};
template <class T>
struct Held<std::unique_ptr<T>> {
  using Type = T;
  static void* first(void* member) { return static_cast<std::unique_ptr<T>*>(member)->get(); }
  static Result<void> make(const Field& /*row*/, void* member, std::size_t count) {
    auto& pointer = *static_cast<std::unique_ptr<T>*>(member);
    if (count != 0 && pointer == nullptr) pointer = std::make_unique<T>();
    return {};
  }
};
template <class T>
struct Held<std::unique_ptr<T[]>> {
  using Type = T;
  static void* first(void* member) { return static_cast<std::unique_ptr<T[]>*>(member)->get(); }
  static Result<void> make(const Field& /*row*/, void* member, std::size_t count) {
    *static_cast<std::unique_ptr<T[]>*>(member) = count != 0 ? std::make_unique<T[]>(count) : nullptr;
    return {};
  }
};
template <class T>
concept Contiguous = requires(T& value) {
  value.data();
  value.size();
};
template <Contiguous T>
struct Held<T> {
  using Type = std::remove_pointer_t<decltype(std::declval<T&>().data())>;
  static_assert(!std::is_same_v<T, std::vector<bool>>, "vector<bool> has no elements");
  static void* first(void* member) { return static_cast<T*>(member)->data(); }
  static std::size_t room(const void* member) { return static_cast<const T*>(member)->size(); }
  static Result<void> make(const Field& /*row*/, void* member, std::size_t count) requires requires(T& value) {
    value.resize(count);
  }
  {
    auto& value = *static_cast<T*>(member);
    value.clear();
    value.resize(count);
    return {};
  }
};

template <class T>
constexpr Storage storage_of() {
  Storage out{&Held<T>::first, nullptr, nullptr};
  if constexpr (requires { &Held<T>::room; }) out.room = &Held<T>::room;
  return out;
}

template <class T>
constexpr Storage made_storage_of() {
  Storage out = storage_of<T>();
  out.make = &Held<T>::make;
  return out;
}

}  // namespace detail

// The elements are there already.
template <class T>
inline constexpr Storage storage = detail::storage_of<T>();
// The loader makes them, value-initialised; what was there is freed.
template <class T>
inline constexpr Storage made_storage = detail::made_storage_of<T>();

// For rows made at run time: the member is a pointer from malloc (or null). The loader frees it and puts zeroed memory
// of count * Field::stride bytes there.
extern const Storage heap_storage;
// The same without allocation.
extern const Storage pointer_storage;

}  // namespace migrationd::vmstate
