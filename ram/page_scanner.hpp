// SPDX-License-Identifier: Apache-2.0
//
// PageScanner: what to send next, from the dirty bits of all blocks.
//
// A pass is one sweep over all blocks in order. begin_pass() takes in what the dirty log reports; next() yields
// batches until none is left. The first pass sends everything: begin_first_pass() sets every bit.
//
// Order: next() clears the bits of a batch before the caller reads a page. Holes are asked from the file in the same
// order: bit cleared, then asked; data that comes into a hole later is reported by the dirty log.
//
// Holes: a page that was never sent is *fresh*. Fresh pages lie behind the frontier, the furthest place any sweep came
// to, so that a first pass that is cut short (the machine is stopped early) loses nothing. Fresh holes are found by
// `extents` and yielded as such, in large runs. Before the frontier a dirty page is data, because it was written; only
// if the file holds fewer pages than at the pass before (the guest gave memory back) is each dirty page asked for.
//
// Cost: remaining_pages() is a number kept up to date; bits are counted once per pass, never per batch.
// Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "ram/dirty_log.hpp"
#include "ram/extents.hpp"
#include "ram/page_batch.hpp"
#include "ram/ram_map.hpp"

#include <cstdint>
#include <optional>
#include <vector>

namespace migrationd::ram {

class PageScanner {
 public:
  static constexpr std::uint64_t batch_pages = 1024;        // 4 MiB: what a stop or a limit waits for at most
  static constexpr std::uint64_t hole_batch_pages = 65536;  // 256 MiB of holes: 590 KB of zero records

  // The map outlives it.
  static Result<PageScanner> of(RamMap& map);

  // Blocks that are never dirty, by index: their memory stays where it is. Before the first pass.
  void leave_out(std::vector<bool> blocks) { left_out_ = std::move(blocks); }
  // Everything is dirty, nothing was sent.
  Result<void> begin_first_pass();
  // Adds what `log` reports (null: nothing can write) and starts a sweep. Returns the pages the log reported.
  Result<std::uint64_t> begin_pass(DirtyLog* log);
  // The next batch, valid until the next call; null when the sweep is over. Bits set meanwhile (by sync()) behind the
  // sweep's position wait for the next pass.
  Result<const PageBatch*> next();

  // Pages with their bit set.
  std::uint64_t remaining_pages() const noexcept { return remaining_; }
  std::uint64_t remaining_bytes() const noexcept { return remaining_ * page_size; }
  // What is dirty; afterwards the scanner is good for nothing. None: every page is, and none was handed out by next().
  std::optional<DirtyBitmaps> take_dirty();

 private:
  struct Block {
    Extents extents;
    std::uint64_t allocated = 0;  // bytes, when the pass began
    bool full = false;            // no holes then
    bool shrank = false;          // since the pass before
    Extent known;                 // last piece of fresh data found in this pass
  };
  struct Position {
    std::size_t block = 0;
    std::uint64_t page = 0;
    auto operator<=>(const Position&) const = default;
  };
  // Pages [first, end) of the sweep's block are all of one kind.
  struct Piece {
    std::uint64_t end = 0;
    BatchKind kind = BatchKind::data;
  };

  PageScanner(RamMap& map, std::vector<Block> blocks);
  Result<void> start_sweep();
  // Before anybody looks at the bits.
  void mark_everything();
  void forget_left_out();
  void count_remaining() noexcept;
  // What the dirty pages [first, end) of the sweep's block begin with.
  Result<Piece> classify(std::uint64_t first, std::uint64_t end);
  Result<Piece> classify_fresh(std::uint64_t first, std::uint64_t end);
  Result<Piece> classify_sent(std::uint64_t first, std::uint64_t end);
  void take(PageRun run);

  RamMap* map_;
  std::vector<Block> blocks_;
  DirtyBitmaps dirty_;
  bool everything_ = false;     // is dirty; dirty_ does not say so yet
  std::vector<bool> left_out_;  // empty: none
  PageBatch batch_;
  std::uint64_t remaining_ = 0;
  Position at_;        // of the sweep
  Position frontier_;  // pages from here on were never sent, and are all dirty
};

}  // namespace migrationd::ram
