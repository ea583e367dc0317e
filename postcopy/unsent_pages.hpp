// SPDX-License-Identifier: Apache-2.0
//
// UnsentPages: which pages the destination of a postcopy still lacks, and which one goes next (docs/spec/postcopy.md
// section 9.2). Pure: no channel, no memory, no clock.
//
// After the switch the source's guest never runs again, so every page goes exactly once. Two threads send: the one that
// reads the destination's requests, and the mover, which streams the rest behind. Who clears a page's bit has claimed
// it and sends it; the other finds it cleared and leaves it alone.
//
// A block is dealt with in *host pages*: the pages of the destination's backing (2 MiB of a hugetlb block), which are
// placed there as a whole. So the dirty bitmaps are rounded outward at the start, and every claim is whole host pages.
//
// Two bits per page:
//   sent     somebody has claimed it; until then, a request may
//   settled  the background need not look at it any more; always, if it is sent
// They differ for pages that are zero without being looked at (holes): the background passes over them with skip(),
// for a page that never comes reads as zero in the end; but somebody may wait for one until then, and asks.
//
// Order of the background: the preferred runs first (a recorded working set), then from the cursor on, around the whole
// memory. A request moves the cursor behind itself, because neighbours of a page that was touched are likely next.
//
// Thread: none of its own; its users share it under one lock.
#pragma once

#include "base/bitmap.hpp"
#include "postcopy/block_shape.hpp"
#include "ram/dirty_log.hpp"
#include "ram/page_batch.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

namespace migrationd::postcopy {

// Pages of one block; whole host pages.
struct PageRange {
  std::size_t block = 0;
  ram::PageRun run;
  bool operator==(const PageRange&) const = default;
};

class UnsentPages {
 public:
  // `dirty`: what the destination lacks, one bitmap per block. `host_pages`: target pages per host page of each block,
  // a power of two that divides the block's pages.
  UnsentPages(ram::DirtyBitmaps dirty, std::vector<std::uint64_t> host_pages);
  // It lacks every page.
  explicit UnsentPages(std::span<const BlockShape> blocks);

  // Target pages that the background has still to look at.
  std::uint64_t due_pages() const noexcept { return due_pages_; }

  // The first unsent host pages that `wanted` touches, claimed; nothing when all of it has been claimed before. Ask
  // again until nothing is left. `wanted` lies within the block.
  std::optional<ram::PageRun> claim_requested(std::size_t block, ram::PageRun wanted);

  // Whether a request for that page follows what was sent last by request, or the piece behind it: somebody goes
  // through the memory in order. Ask before claiming.
  bool in_sequence(std::size_t block, std::uint64_t page) const noexcept;

  // What the background should look at next: due pages, at most `most` of them but at least one host page. Not claimed.
  std::optional<PageRange> next(std::uint64_t most);
  // The first due host pages of `range`, claimed: those that no request has taken meanwhile. `range` is whole host
  // pages.
  std::optional<ram::PageRun> claim(const PageRange& range);
  // Zero without a look: not due any more, still to be had by a request. Whole host pages.
  void skip(const PageRange& range);

  // These go first, in this order. Whole host pages are taken of each. Out-of-range ones are dropped.
  void prefer(std::span<const PageRange> order);
  // The next preferred ones, claimed: due runs in that order, `most` pages of them at most but at least one host page.
  // Empty: none is left.
  std::vector<PageRange> claim_preferred(std::uint64_t most);
  // Whether some may be left; claim_preferred() knows.
  bool any_preferred() const noexcept { return !preferred_.empty(); }

 private:
  struct Cursor {
    std::size_t block = 0;
    std::uint64_t page = 0;
  };

  ram::PageRun outward(std::size_t block, ram::PageRun run) const noexcept;
  std::optional<ram::PageRun> first_clear_run(const Bitmap& bitmap, ram::PageRun within) const noexcept;
  void settle(std::size_t block, ram::PageRun run) noexcept;
  std::optional<PageRange> next_preferred(std::uint64_t most);
  std::optional<PageRange> next_from_cursor(std::uint64_t most);

  // Bits of what is done, not of what is to do: a machine of which nothing was sent needs no memory for them.
  std::vector<Bitmap> sent_;
  std::vector<Bitmap> settled_;
  std::vector<std::uint64_t> host_pages_;
  std::uint64_t due_pages_ = 0;
  Cursor cursor_;
  std::deque<PageRange> preferred_;
};

}  // namespace migrationd::postcopy
