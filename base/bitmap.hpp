// SPDX-License-Identifier: Apache-2.0
//
// Bitmap: one bit per page.
//
// Bit i is bit i mod 64 of word i / 64, the order of mapped-ram files and of the return path's received bitmap
// on little-endian hosts (stream.md 9.4). Bits past size() are always zero.
//
// A new bitmap costs nothing, however large: its memory is the kernel's zeros until a bit is set. The bits of 64 GiB
// are 2 MiB, and touching those takes 3 ms on a small machine, which is as long as a whole instant resume.
//
// Thread: a Bitmap belongs to one thread.
#pragma once

#include "base/zeroed_allocator.hpp"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace migrationd {

class Bitmap {
 public:
  Bitmap() = default;
  explicit Bitmap(std::size_t bits) : bits_(bits), words_((bits + 63) / 64) {}

  std::size_t size() const noexcept { return bits_; }
  bool test(std::size_t bit) const noexcept { return (words_[bit / 64] >> (bit % 64)) & 1U; }
  void set(std::size_t bit) noexcept { words_[bit / 64] |= std::uint64_t{1} << (bit % 64); }
  void clear(std::size_t bit) noexcept { words_[bit / 64] &= ~(std::uint64_t{1} << (bit % 64)); }
  // [first, first + count) must lie within size().
  void set_range(std::size_t first, std::size_t count) noexcept;
  void clear_range(std::size_t first, std::size_t count) noexcept;
  void set_all() noexcept { set_range(0, bits_); }
  void clear_all() noexcept;
  void invert() noexcept;
  std::size_t count() const noexcept;
  // First set (clear) bit at or after `from`; size() when there is none.
  std::size_t find_set(std::size_t from) const noexcept;
  std::size_t find_clear(std::size_t from) const noexcept;
  // The same within [from, end), end <= size(): `end` when there is none. Looks at no word behind the end, which is
  // what callers in a loop over a large bitmap want.
  std::size_t find_set(std::size_t from, std::size_t end) const noexcept;
  std::size_t find_clear(std::size_t from, std::size_t end) const noexcept;
  std::span<const std::uint64_t> words() const noexcept { return words_; }
  std::span<std::uint64_t> words() noexcept { return words_; }

 private:
  std::size_t bits_ = 0;
  std::vector<std::uint64_t, ZeroedAllocator<std::uint64_t>> words_;
};

}  // namespace migrationd
