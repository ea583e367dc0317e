// SPDX-License-Identifier: Apache-2.0
#include "ram/page_scanner.hpp"

#include <algorithm>
#include <utility>

namespace migrationd::ram {
namespace {

// SEEK_HOLE visits every page of a piece of data. Asked in steps, so that one question takes a few milliseconds and
// not, on a large full guest, a second in which no stop is noticed.
constexpr std::uint64_t ask_bytes = std::uint64_t{256} << 20;

}  // namespace

PageScanner::PageScanner(RamMap& map, std::vector<Block> blocks) : map_(&map), blocks_(std::move(blocks)) {
  for (std::size_t index = 0; index < map.size(); ++index) dirty_.emplace_back(map.at(index).pages());
  at_ = frontier_ = {map.size(), 0};
}

Result<PageScanner> PageScanner::of(RamMap& map) {
  std::vector<Block> blocks;
  for (std::size_t index = 0; index < map.size(); ++index) {
    MD_TRY(Extents extents, Extents::of(map.at(index)));
    blocks.push_back(Block{std::move(extents), 0, false, false, {}});
  }
  return PageScanner(map, std::move(blocks));
}

Result<void> PageScanner::start_sweep() {
  at_ = {};
  for (std::size_t index = 0; index < blocks_.size(); ++index) {
    Block& block = blocks_[index];
    MD_TRY(const std::uint64_t allocated, map_->at(index).allocated_bytes());
    block.full = allocated == map_->at(index).length();
    block.shrank = allocated < block.allocated;
    block.allocated = allocated;
    block.known = {};
  }
  return {};
}

void PageScanner::forget_left_out() {
  for (std::size_t index = 0; index < left_out_.size(); ++index) {
    if (left_out_[index]) dirty_[index].clear_range(0, dirty_[index].size());
  }
}

void PageScanner::count_remaining() noexcept {
  remaining_ = 0;
  for (const Bitmap& bitmap : dirty_) remaining_ += bitmap.count();
}

void PageScanner::mark_everything() {
  if (!std::exchange(everything_, false)) return;
  for (Bitmap& bitmap : dirty_) bitmap.set_all();
  forget_left_out();
}

std::optional<DirtyBitmaps> PageScanner::take_dirty() {
  const bool whole = std::find(left_out_.begin(), left_out_.end(), true) == left_out_.end();
  if (whole && frontier_ == Position{}) return std::nullopt;
  mark_everything();
  return std::move(dirty_);
}

// An instant resume sends nothing in this pass: no bit is written before next() is asked.
Result<void> PageScanner::begin_first_pass() {
  everything_ = true;
  remaining_ = 0;
  for (std::size_t index = 0; index < dirty_.size(); ++index) {
    const bool left_out = index < left_out_.size() && left_out_[index];
    if (!left_out) remaining_ += dirty_[index].size();
  }
  frontier_ = {};
  return start_sweep();
}

Result<std::uint64_t> PageScanner::begin_pass(DirtyLog* log) {
  std::uint64_t reported = 0;
  if (log != nullptr) {
    mark_everything();
    MD_TRY(reported, log->sync(dirty_));
    forget_left_out();
    // Counted anew, because reported pages may have been dirty already: 2 MiB of bits for 64 GiB, once per pass.
    count_remaining();
  }
  MD_CHECK(start_sweep());
  return reported;
}

Result<PageScanner::Piece> PageScanner::classify_fresh(std::uint64_t first, std::uint64_t end) {
  Block& block = blocks_[at_.block];
  const std::uint64_t from = first * page_size;
  const std::uint64_t limit = end * page_size;
  if (block.full) return Piece{end, BatchKind::data};
  if (from < block.known.start || from >= block.known.end()) {
    MD_TRY(const std::uint64_t data, block.extents.next_data(from, limit));
    if (data > from) return Piece{data / page_size, BatchKind::fresh_holes};
    MD_TRY(const std::uint64_t data_end, block.extents.next_hole(from, std::min(limit, from + ask_bytes)));
    // The page may be gone between the two questions: reading it is harmless then, it only costs the page.
    block.known = {from, std::max<std::uint64_t>(data_end - from, page_size)};
  }
  return Piece{std::min(limit, block.known.end()) / page_size, BatchKind::data};
}

Result<PageScanner::Piece> PageScanner::classify_sent(std::uint64_t first, std::uint64_t end) {
  const Block& block = blocks_[at_.block];
  if (!block.shrank) return Piece{end, BatchKind::data};
  const std::uint64_t from = first * page_size;
  MD_TRY(const std::uint64_t data, block.extents.next_data(from, end * page_size));
  if (data > from) return Piece{data / page_size, BatchKind::holes};
  return Piece{first + 1, BatchKind::data};
}

Result<PageScanner::Piece> PageScanner::classify(std::uint64_t first, std::uint64_t end) {
  if (Position{at_.block, first} >= frontier_) return classify_fresh(first, end);
  return classify_sent(first, at_.block == frontier_.block ? std::min(end, frontier_.page) : end);
}

void PageScanner::take(PageRun run) {
  dirty_[at_.block].clear_range(run.first, run.count);
  remaining_ -= run.count;
  batch_.add(run);
  at_.page = run.first + run.count;
  frontier_ = std::max(frontier_, at_);
}

Result<const PageBatch*> PageScanner::next() {
  mark_everything();
  batch_.reset(at_.block, BatchKind::data);
  while (at_.block < dirty_.size()) {
    const Bitmap& bitmap = dirty_[at_.block];
    const std::uint64_t first = bitmap.find_set(at_.page);
    if (first >= bitmap.size()) {
      if (!batch_.empty()) return &batch_;
      at_ = {at_.block + 1, 0};
      continue;
    }
    const std::uint64_t limit = std::min<std::uint64_t>(bitmap.size(), first + hole_batch_pages);
    MD_TRY(const Piece piece, classify(first, bitmap.find_clear(first, limit)));
    if (!batch_.empty() && batch_.kind() != piece.kind) return &batch_;
    if (batch_.empty()) batch_.reset(at_.block, piece.kind);
    const std::uint64_t most = piece.kind == BatchKind::data ? batch_pages : hole_batch_pages;
    take({first, std::min(piece.end - first, most - batch_.pages())});
    if (batch_.pages() == most) return &batch_;
  }
  return nullptr;
}

}  // namespace migrationd::ram
