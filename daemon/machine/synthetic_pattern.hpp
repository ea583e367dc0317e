// SPDX-License-Identifier: Apache-2.0
//
// What the synthetic guest writes, where, and in which order: pure functions of a few numbers, so that what every
// page must hold follows from one counter per thread.
//
// A page of the pattern is a header {magic, page, generation, seed} and a body made from all of these; every one of
// its 4096 bytes is determined. Generation 0 is the fill at the start; each write of a page raises its generation
// by one. So a lost write shows as an old generation, a page at the wrong place by its number, a torn one by a body
// that does not belong to its header.
//
// Where: logical pages 0..n lie in 2 MiB pieces spread evenly over the block (identity when most of it is used).
// Order: thread t owns a slice of the working set and writes it in rounds, each page once per round: ascending,
// descending, in golden-section strides, in strides chosen by the seed, and so on. A round's order is a permutation
// (a*j + b) mod n, so "how often was page i written after k writes" has an answer without memory of the past.
//
// Thread: values and pure functions.
#pragma once

#include "ram/ram_map.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::synthetic {

// --- one page --------------------------------------------------------------------------------------------
struct PageIdentity {
  std::uint64_t page = 0;  // block number in the upper 16 bits, page of the block below
  std::uint64_t generation = 0;
  std::uint64_t seed = 0;
};
inline std::uint64_t page_number(std::size_t block, std::uint64_t page) { return (std::uint64_t{block} << 48) | page; }

// 4096 bytes at `to`.
void write_page(std::byte* to, const PageIdentity& identity) noexcept;
bool page_is(const std::byte* from, const PageIdentity& identity) noexcept;
bool page_is_zero(const std::byte* from) noexcept;
// Only the header is looked at: what a guest can afford with every page it writes.
bool page_begins(const std::byte* from, const PageIdentity& identity) noexcept;
bool page_begins_zero(const std::byte* from) noexcept;
// Why the page is not `expected`, for people: "expected generation 5, found generation 4 (stale)". Slow.
std::string explain_page(const std::byte* from, const PageIdentity& expected);

// --- order -----------------------------------------------------------------------------------------------
// The sequence in which one thread writes its n pages (n <= 2^32).
class WriteOrder {
 public:
  WriteOrder(std::uint64_t pages, std::uint64_t seed) noexcept : pages_(pages), seed_(seed) {}
  std::uint64_t pages() const noexcept { return pages_; }
  // Index of the page that write number k (from 0) goes to.
  std::uint64_t at(std::uint64_t k) noexcept;
  // How often page `index` was written by the first `writes` writes.
  std::uint64_t times(std::uint64_t index, std::uint64_t writes) noexcept;

 private:
  struct Round {
    std::uint64_t number = ~std::uint64_t{0};
    std::uint64_t factor = 1, offset = 0, inverse = 1;
  };
  void enter(std::uint64_t round) noexcept;

  std::uint64_t pages_;
  std::uint64_t seed_;
  Round round_;
};

// --- place -----------------------------------------------------------------------------------------------
// What the guest is: travels with it.
struct GuestShape {
  std::uint64_t ram_pages = 0;
  std::uint64_t working_pages = 0;
  std::uint64_t touched_pages = 0;
  std::uint32_t threads = 1;
  std::uint64_t seed = 1;

  std::uint64_t used_pages() const noexcept { return std::max(working_pages, touched_pages); }
};

class PagePlaces {
 public:
  explicit PagePlaces(const GuestShape& shape) noexcept;
  std::uint64_t physical(std::uint64_t logical) const noexcept;
  // The logical page at a physical one, if the guest uses it.
  std::optional<std::uint64_t> logical(std::uint64_t physical) const noexcept;

 private:
  std::uint64_t used_;
  std::uint64_t stride_;  // distance of used pieces, in pieces
};

// First logical page and number of pages of a thread's slice.
struct Slice {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
};
Slice slice_of(const GuestShape& shape, std::uint32_t thread) noexcept;
std::uint64_t order_seed(const GuestShape& shape, std::uint32_t thread) noexcept;

// What a page must hold, given how many writes each thread has done.
class Ledger {
 public:
  Ledger(const GuestShape& shape, std::vector<std::uint64_t> writes);
  // nullopt: never touched, so it is a hole or zero. Takes a page of the block.
  std::optional<std::uint64_t> generation(std::uint64_t physical) noexcept;
  // How many pages have a generation.
  std::uint64_t pages_with_data() noexcept;

 private:
  std::optional<std::uint64_t> logical_generation(std::uint64_t logical) noexcept;

  GuestShape shape_;
  PagePlaces places_;
  std::vector<std::uint64_t> writes_;
  std::vector<WriteOrder> orders_;
};

// splitmix64: the one mixer of this folder.
constexpr std::uint64_t mix(std::uint64_t value) noexcept {
  value += 0x9e3779b97f4a7c15U;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31);
}

}  // namespace migrationd::synthetic
