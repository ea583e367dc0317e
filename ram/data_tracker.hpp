// SPDX-License-Identifier: Apache-2.0
//
// DataTracker: which parts of a block a dirty log watches, and what became data or a hole behind its back.
//
// Protecting a hole costs page tables (64 GiB untouched: 370 ms and 128 MiB), so only data is protected. The unit
// is a *chunk* of 2 MiB, what one page-table page maps: a chunk that holds any data is watched whole, for its page
// table exists anyway. That bounds the bookkeeping, keeps watched ranges long, and lets holes inside a watched chunk
// be written under the log's eyes. An unwatched chunk is all hole: one SEEK_DATA over a run of them finds the first
// page that came since, whatever the run's length.
//
//   admit_new   finds chunks that got their first data. For each run: protect(run) by the caller, *then* the
//               run's data pages are marked dirty. Data that comes in between is caught by one or the other.
//   find_holes  pages that were data and are holes now are dirty (their bytes are zeros now). Finding them means
//               visiting every page (14 ms/GiB), so it is done only when the file holds fewer pages than when last
//               looked, or than are known to be data. Pages that come in the moment between may hide as many that
//               went, until the next look finds them written: never behind the last one, when the guest stands
//               still.
//
// Thread: the dirty log's owner.
#pragma once

#include "base/bitmap.hpp"
#include "base/result.hpp"
#include "ram/extents.hpp"
#include "ram/ram_map.hpp"

#include <cstdint>
#include <utility>
#include <vector>

namespace migrationd::ram {

// Which blocks of a map a log is for: all, or those whose element is true.
class BlockChoice {
 public:
  BlockChoice() = default;
  explicit BlockChoice(std::vector<bool> chosen) : chosen_(std::move(chosen)) {}
  bool has(std::size_t block) const { return chosen_.empty() || chosen_[block]; }

 private:
  std::vector<bool> chosen_;
};

class DataTracker {
 public:
  static constexpr std::uint64_t chunk_bytes = huge_page_size;
  static constexpr std::uint64_t chunk_pages = chunk_bytes / page_size;

  static Result<DataTracker> of(const RamBlock& block);

  // Calls protect(Extent) -> Result<void> for every run of chunks not watched yet that holds data now, and sets
  // the bits of their data pages in `dirty` (may be null). Returns how many pages it found.
  template <class Protect>
  Result<std::uint64_t> admit_new(Bitmap* dirty, Protect protect) {
    std::uint64_t found = 0;
    for (std::size_t chunk = watched_.find_clear(0); chunk < watched_.size();) {
      const std::size_t end = watched_.find_set(chunk);
      MD_TRY(const ChunkRun run, next_run(chunk, end));
      if (run.count != 0) {
        MD_CHECK(protect(bytes_of(run)));
        watched_.set_range(run.first, run.count);
        MD_TRY(const std::uint64_t pages, note_data(bytes_of(run), dirty));
        found += pages;
        allocated_ += pages * page_size;
      }
      chunk = run.count == 0 || run.first + run.count == end ? watched_.find_clear(end) : run.first + run.count;
    }
    return found;
  }

  // These pages were found written: they are data.
  void note_written(Extent range) noexcept { data_.set_range(range.start / page_size, range.length / page_size); }

  // Calls visit(Extent) -> Result<void> for every run of watched chunks.
  template <class Visit>
  Result<void> for_each_watched(Visit visit) const {
    for (std::size_t chunk = watched_.find_set(0); chunk < watched_.size();) {
      const std::size_t end = watched_.find_clear(chunk);
      MD_CHECK(visit(bytes_of({chunk, end - chunk})));
      chunk = watched_.find_set(end);
    }
    return {};
  }

  // Sets the bits of pages that were data when last looked at and are holes now; returns their number.
  Result<std::uint64_t> find_holes(Bitmap& dirty);

 private:
  struct ChunkRun {
    std::size_t first = 0;
    std::size_t count = 0;
  };

  DataTracker(const RamBlock& block, Extents extents);
  Extent bytes_of(ChunkRun run) const noexcept;
  Result<void> look_for_holes(Bitmap& dirty, std::uint64_t& found);
  // The first run of chunks in [chunk, end) that hold data.
  Result<ChunkRun> next_run(std::size_t chunk, std::size_t end) const;
  Result<std::uint64_t> note_data(Extent range, Bitmap* dirty);
  std::uint64_t note_hole(std::uint64_t start, std::uint64_t end, Bitmap& dirty);

  const RamBlock* block_;
  Extents extents_;
  Bitmap watched_;               // per chunk
  Bitmap data_;                  // per page: held data when last looked at
  std::uint64_t allocated_ = 0;  // the most allocated_bytes() seen since data_ was last compared with the file
};

}  // namespace migrationd::ram
