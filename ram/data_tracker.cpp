// SPDX-License-Identifier: Apache-2.0
#include "ram/data_tracker.hpp"

#include <algorithm>

namespace migrationd::ram {

DataTracker::DataTracker(const RamBlock& block, Extents extents)
    : block_(&block),
      extents_(std::move(extents)),
      watched_((block.length() + chunk_bytes - 1) / chunk_bytes),
      data_(block.pages()) {}

Result<DataTracker> DataTracker::of(const RamBlock& block) {
  MD_TRY(Extents extents, Extents::of(block));
  return DataTracker(block, std::move(extents));
}

Extent DataTracker::bytes_of(ChunkRun run) const noexcept {
  const std::uint64_t start = run.first * chunk_bytes;
  return {start, std::min(run.count * chunk_bytes, block_->length() - start)};
}

Result<DataTracker::ChunkRun> DataTracker::next_run(std::size_t chunk, std::size_t end) const {
  const std::uint64_t limit = std::min(end * chunk_bytes, block_->length());
  MD_TRY(std::uint64_t at, extents_.next_data(chunk * chunk_bytes, limit));
  if (at == limit) return ChunkRun{};
  const std::size_t first = at / chunk_bytes;
  std::size_t last = first;  // the run is [first, last]
  while (last + 1 < end) {
    const std::uint64_t next = (last + 1) * chunk_bytes;
    MD_TRY(at, extents_.next_data(next, limit));
    if (at == limit || at / chunk_bytes != last + 1) break;
    ++last;
  }
  return ChunkRun{first, last - first + 1};
}

Result<std::uint64_t> DataTracker::note_data(Extent range, Bitmap* dirty) {
  // A block without holes need not be walked (14 ms/GiB).
  MD_TRY(const std::uint64_t allocated, block_->allocated_bytes());
  if (allocated == block_->length()) {
    note_written(range);
    if (dirty != nullptr) dirty->set_range(range.start / page_size, range.length / page_size);
    return range.length / page_size;
  }
  std::uint64_t found = 0;
  for (std::uint64_t at = range.start; at < range.end();) {
    MD_TRY(const auto piece, extents_.next(at, range.end()));
    if (!piece) break;
    const std::size_t first = piece->start / page_size;
    const std::size_t count = piece->length / page_size;
    data_.set_range(first, count);
    if (dirty != nullptr) dirty->set_range(first, count);
    found += count;
    at = piece->end();
  }
  return found;
}

std::uint64_t DataTracker::note_hole(std::uint64_t start, std::uint64_t end, Bitmap& dirty) {
  std::uint64_t found = 0;
  for (std::size_t page = data_.find_set(start / page_size); page < end / page_size; page = data_.find_set(page)) {
    const std::size_t stop = std::min<std::size_t>(data_.find_clear(page), end / page_size);
    dirty.set_range(page, stop - page);
    data_.clear_range(page, stop - page);
    found += stop - page;
  }
  return found;
}

Result<void> DataTracker::look_for_holes(Bitmap& dirty, std::uint64_t& found) {
  return for_each_watched([&](Extent range) -> Result<void> {
    for (std::uint64_t at = range.start; at < range.end();) {
      MD_TRY(const auto piece, extents_.next(at, range.end()));
      found += note_hole(at, piece ? piece->start : range.end(), dirty);
      if (!piece) break;
      note_written(*piece);
      at = piece->end();
    }
    return {};
  });
}

Result<std::uint64_t> DataTracker::find_holes(Bitmap& dirty) {
  // Counted before the walk: pages given back meanwhile make the next count smaller than this one.
  MD_TRY(const std::uint64_t allocated, block_->allocated_bytes());
  std::uint64_t found = 0;
  if (allocated < std::max(allocated_, data_.count() * page_size)) MD_CHECK(look_for_holes(dirty, found));
  allocated_ = allocated;
  return found;
}

}  // namespace migrationd::ram
