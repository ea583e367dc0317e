// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/xbzrle.hpp"

#include <fmt/format.h>

#include <bit>
#include <cstdint>
#include <cstring>

namespace migrationd::stream {

namespace {

Error refused(std::string_view what, std::size_t at) {
  return wire_error(fmt::format("delta page: {} (delta offset {})", what, at));
}

// One or two bytes. At least two bytes must remain, even for a length of one byte: a run of bytes always follows.
Result<std::size_t> read_length(ByteView delta, std::size_t& at) {
  if (delta.size() - at < 2) return refused("ends inside a run", at);
  const auto first = static_cast<std::size_t>(delta[at++]);
  if (first < 0x80) return first;
  const auto second = static_cast<std::size_t>(delta[at++]);
  if (second >= 0x80) return refused("run length of more than two bytes", at);
  return (first & 0x7f) | second << 7;
}

std::size_t put_length(std::byte* out, std::size_t length) noexcept {
  if (length < 0x80) {
    out[0] = static_cast<std::byte>(length);
    return 1;
  }
  out[0] = static_cast<std::byte>(0x80 | (length & 0x7f));
  out[1] = static_cast<std::byte>(length >> 7);
  return 2;
}

std::uint64_t difference_at(PageView before, PageView after, std::size_t at) noexcept {
  std::uint64_t a = 0;
  std::uint64_t b = 0;
  std::memcpy(&a, before.data() + at, sizeof a);
  std::memcpy(&b, after.data() + at, sizeof b);
  return a ^ b;
}

static_assert(std::endian::native == std::endian::little, "the first differing byte is the lowest of the word");

// First position from `at` on where the pages differ.
std::size_t end_of_equal(PageView before, PageView after, std::size_t at) noexcept {
  while (at + 8 <= page_bytes) {
    const std::uint64_t difference = difference_at(before, after, at);
    if (difference != 0) return at + static_cast<std::size_t>(std::countr_zero(difference)) / 8;
    at += 8;
  }
  while (at < page_bytes && before[at] == after[at]) ++at;
  return at;
}

// First position from `at` on where the pages agree.
std::size_t end_of_different(PageView before, PageView after, std::size_t at) noexcept {
  constexpr std::uint64_t ones = 0x0101010101010101;
  constexpr std::uint64_t highs = 0x8080808080808080;
  while (at + 8 <= page_bytes) {
    const std::uint64_t difference = difference_at(before, after, at);
    // The lowest bit set marks the lowest zero byte.
    const std::uint64_t zero = (difference - ones) & ~difference & highs;
    if (zero != 0) return at + static_cast<std::size_t>(std::countr_zero(zero)) / 8;
    at += 8;
  }
  while (at < page_bytes && before[at] != after[at]) ++at;
  return at;
}

}  // namespace

Result<void> xbzrle_decode(ByteView delta, MutablePage page) {
  std::size_t from = 0;
  std::size_t to = 0;
  while (from < delta.size()) {
    MD_TRY(const std::size_t skip, read_length(delta, from));
    if (skip == 0 && to != 0) return refused("run of no unchanged bytes", from);
    to += skip;
    if (to > page_bytes) return refused("skips past the page's end", from);
    MD_TRY(const std::size_t copy, read_length(delta, from));
    if (copy == 0) return refused("run of no changed bytes", from);
    if (copy > delta.size() - from) return refused("ends inside changed bytes", from);
    if (copy > page_bytes - to) return refused("writes past the page's end", from);
    std::memcpy(page.data() + to, delta.data() + from, copy);
    to += copy;
    from += copy;
  }
  return {};
}

std::optional<std::size_t> xbzrle_encode(PageView before, PageView after, MutablePage out) noexcept {
  std::size_t written = 0;
  std::size_t at = 0;
  while (at < page_bytes) {
    // These bounds are QEMU's, and part of being bit-exact: a delta is given up where QEMU gives it up.
    if (written + 2 > page_bytes) return std::nullopt;
    const std::size_t changed = end_of_equal(before, after, at);
    if (changed == page_bytes) return written;
    written += put_length(out.data() + written, changed - at);
    if (written + 2 > page_bytes) return std::nullopt;
    const std::size_t equal = end_of_different(before, after, changed);
    const std::size_t run = equal - changed;
    written += put_length(out.data() + written, run);
    if (written + run > page_bytes) return std::nullopt;
    std::memcpy(out.data() + written, after.data() + changed, run);
    written += run;
    at = equal;
  }
  return written;
}

}  // namespace migrationd::stream
