// SPDX-License-Identifier: Apache-2.0
#include "base/bitmap.hpp"

#include <algorithm>

namespace migrationd {
namespace {

// The bits [first, last) of one word as a mask; 0 <= first < last <= 64.
std::uint64_t mask(std::size_t first, std::size_t last) noexcept {
  const std::uint64_t high = last == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << last) - 1;
  return high & ~((std::uint64_t{1} << first) - 1);
}

// Calls change(word, mask) for every word that [first, first + count) touches.
template <class Change>
void for_each_word(std::span<std::uint64_t> words, std::size_t first, std::size_t count, Change change) noexcept {
  const std::size_t end = first + count;
  while (first < end) {
    const std::size_t word_end = std::min(end, (first / 64 + 1) * 64);
    const std::size_t base = first / 64 * 64;
    change(words[first / 64], mask(first - base, word_end - base));
    first = word_end;
  }
}

std::size_t find(std::span<const std::uint64_t> words, std::size_t bits, std::size_t from,
                 std::uint64_t flip) noexcept {
  if (from >= bits) return bits;
  std::uint64_t word = (words[from / 64] ^ flip) & mask(from % 64, 64);
  for (std::size_t index = from / 64;;) {
    if (word != 0) return std::min(bits, index * 64 + static_cast<std::size_t>(std::countr_zero(word)));
    if (++index * 64 >= bits) return bits;
    word = words[index] ^ flip;
  }
}

}  // namespace

void Bitmap::set_range(std::size_t first, std::size_t count) noexcept {
  for_each_word(words_, first, count, [](std::uint64_t& word, std::uint64_t bits) { word |= bits; });
}

void Bitmap::clear_range(std::size_t first, std::size_t count) noexcept {
  for_each_word(words_, first, count, [](std::uint64_t& word, std::uint64_t bits) { word &= ~bits; });
}

void Bitmap::clear_all() noexcept { std::fill(words_.begin(), words_.end(), 0); }

void Bitmap::invert() noexcept {
  for (std::uint64_t& word : words_) word = ~word;
  if (bits_ % 64 != 0) words_.back() &= mask(0, bits_ % 64);
}

std::size_t Bitmap::count() const noexcept {
  std::size_t total = 0;
  for (const std::uint64_t word : words_) total += static_cast<std::size_t>(std::popcount(word));
  return total;
}

std::size_t Bitmap::find_set(std::size_t from) const noexcept { return find(words_, bits_, from, 0); }
std::size_t Bitmap::find_clear(std::size_t from) const noexcept { return find(words_, bits_, from, ~std::uint64_t{0}); }
std::size_t Bitmap::find_set(std::size_t from, std::size_t end) const noexcept { return find(words_, end, from, 0); }
std::size_t Bitmap::find_clear(std::size_t from, std::size_t end) const noexcept {
  return find(words_, end, from, ~std::uint64_t{0});
}

}  // namespace migrationd
