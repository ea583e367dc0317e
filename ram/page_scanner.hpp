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
// Holes: in the first pass every hole is found by `extents` and yielded as such, in large runs. In later passes
// a dirty page is data, because it was written; only if the file holds fewer pages than at the pass before (the
// guest gave memory back) is each dirty page asked for.
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
  const DirtyBitmaps& dirty() const noexcept { return dirty_; }

 private:
  struct Block {
    Extents extents;
    std::uint64_t allocated = 0;  // bytes, when the pass began
    bool ask_for_holes = true;    // in this pass
    Extent known;                 // last piece of data found in this pass
  };

  PageScanner(RamMap& map, std::vector<Block> blocks);
  Result<void> start_sweep(bool first);
  // The first page in [page, end) of another kind than `page` itself; sets `hole` to what `page` is.
  Result<std::uint64_t> same_kind_until(std::uint64_t page, std::uint64_t end, bool& hole);
  Result<std::uint64_t> ask_extents(std::uint64_t page, std::uint64_t end, bool& hole);
  void take(PageRun run);

  RamMap* map_;
  std::vector<Block> blocks_;
  DirtyBitmaps dirty_;
  PageBatch batch_;
  std::uint64_t remaining_ = 0;
  std::size_t block_ = 0;  // position of the sweep
  std::uint64_t page_ = 0;
  bool first_pass_ = true;
};

}  // namespace migrationd::ram
