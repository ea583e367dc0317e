// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdlib>
#include <new>
#include <type_traits>
#include <utility>

namespace migrationd {

// Memory from calloc: what is large enough comes from the kernel and is not touched before somebody writes to it. An
// element that a container makes without a value is left as it is, zero. So only for containers that never shrink and
// grow again: what they reuse is not zero any more.
template <class T>
class ZeroedAllocator {
  static_assert(std::is_trivially_copyable_v<T>, "zero bytes must be a value");

 public:
  using value_type = T;

  ZeroedAllocator() = default;
  template <class U>
  explicit ZeroedAllocator(const ZeroedAllocator<U>&) noexcept {}

  T* allocate(std::size_t count) {
    void* const memory = std::calloc(count, sizeof(T));
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) noexcept { std::free(memory); }

  void construct(T*) noexcept {}
  template <class... Args>
  void construct(T* place, Args&&... args) {
    ::new (static_cast<void*>(place)) T(std::forward<Args>(args)...);
  }

  bool operator==(const ZeroedAllocator&) const noexcept { return true; }
};

}  // namespace migrationd
