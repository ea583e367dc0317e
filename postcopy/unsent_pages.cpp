// SPDX-License-Identifier: Apache-2.0
#include "postcopy/unsent_pages.hpp"

#include <algorithm>
#include <utility>

namespace migrationd::postcopy {

using ram::PageRun;

namespace {

void round_outward(Bitmap& bitmap, std::uint64_t host_pages) {
  if (host_pages == 1) return;
  for (std::uint64_t page = bitmap.find_set(0); page < bitmap.size();) {
    const std::uint64_t first = page / host_pages * host_pages;
    bitmap.set_range(first, host_pages);
    page = bitmap.find_set(first + host_pages);
  }
}

}  // namespace

UnsentPages::UnsentPages(ram::DirtyBitmaps dirty, std::vector<std::uint64_t> host_pages)
    : sent_(std::move(dirty)), host_pages_(std::move(host_pages)) {
  for (std::size_t block = 0; block < sent_.size(); ++block) {
    round_outward(sent_[block], host_pages_[block]);
    due_pages_ += sent_[block].count();
    sent_[block].invert();
  }
  settled_ = sent_;
}

UnsentPages::UnsentPages(std::span<const BlockShape> blocks) {
  for (const BlockShape& block : blocks) {
    sent_.emplace_back(block.pages);
    settled_.emplace_back(block.pages);
    host_pages_.push_back(block.host_pages);
    due_pages_ += block.pages;
  }
}

PageRun UnsentPages::outward(std::size_t block, PageRun run) const noexcept {
  const std::uint64_t step = host_pages_[block];
  const std::uint64_t first = run.first / step * step;
  const std::uint64_t end = (run.first + run.count + step - 1) / step * step;
  return {first, std::min<std::uint64_t>(end, sent_[block].size()) - first};
}

std::optional<PageRun> UnsentPages::first_clear_run(const Bitmap& bitmap, PageRun within) const noexcept {
  const std::uint64_t end = within.first + within.count;
  const std::uint64_t first = bitmap.find_clear(within.first, end);
  if (first >= end) return std::nullopt;
  return PageRun{first, bitmap.find_set(first, end) - first};
}

void UnsentPages::settle(std::size_t block, PageRun run) noexcept {
  Bitmap& settled = settled_[block];
  while (const auto piece = first_clear_run(settled, run)) {
    settled.set_range(piece->first, piece->count);
    due_pages_ -= piece->count;
  }
}

std::optional<PageRun> UnsentPages::claim_requested(std::size_t block, PageRun wanted) {
  const PageRun whole = outward(block, wanted);
  const auto run = first_clear_run(sent_[block], whole);
  // Also when it was sent before: the guest is at work there.
  cursor_ = {block, whole.first + whole.count};
  if (!run) return std::nullopt;
  sent_[block].set_range(run->first, run->count);
  settle(block, *run);
  return run;
}

bool UnsentPages::in_sequence(std::size_t block, std::uint64_t page) const noexcept {
  // Two pieces of the background: the cursor is where the last one began.
  constexpr std::uint64_t near = 64;
  return cursor_.block == block && page >= cursor_.page && page - cursor_.page <= near;
}

std::optional<PageRange> UnsentPages::next_preferred(std::uint64_t most) {
  while (!preferred_.empty()) {
    PageRange& range = preferred_.front();
    const auto run = first_clear_run(settled_[range.block], range.run);
    if (run) {
      const std::uint64_t step = host_pages_[range.block];
      const std::uint64_t limit = std::max(most / step * step, step);
      return PageRange{range.block, {run->first, std::min(run->count, limit)}};
    }
    preferred_.pop_front();
  }
  return std::nullopt;
}

std::optional<PageRange> UnsentPages::next_from_cursor(std::uint64_t most) {
  if (due_pages_ == 0) return std::nullopt;
  // Once around: the block of the cursor is met twice, for what lies behind it and what before.
  for (std::size_t met = 0; met <= settled_.size(); ++met) {
    if (cursor_.block >= settled_.size()) cursor_ = {};
    const Bitmap& settled = settled_[cursor_.block];
    const std::uint64_t first = settled.find_clear(std::min<std::uint64_t>(cursor_.page, settled.size()));
    if (first < settled.size()) {
      cursor_.page = first;  // what was found sent is not looked through again
      const std::uint64_t step = host_pages_[cursor_.block];
      const std::uint64_t limit = std::max(most / step * step, step);
      const std::uint64_t end = std::min<std::uint64_t>(settled.size(), first + limit);
      return PageRange{cursor_.block, {first, settled.find_set(first, end) - first}};
    }
    cursor_ = {cursor_.block + 1, 0};
  }
  return std::nullopt;
}

std::optional<PageRange> UnsentPages::next(std::uint64_t most) {
  if (const auto preferred = next_preferred(most)) return preferred;
  return next_from_cursor(most);
}

std::optional<PageRun> UnsentPages::claim(const PageRange& range) {
  const auto run = first_clear_run(settled_[range.block], range.run);
  if (!run) return std::nullopt;
  sent_[range.block].set_range(run->first, run->count);
  settle(range.block, *run);
  return run;
}

void UnsentPages::skip(const PageRange& range) { settle(range.block, range.run); }

std::vector<PageRange> UnsentPages::claim_preferred(std::uint64_t most) {
  std::vector<PageRange> out;
  std::uint64_t claimed = 0;
  while (const auto range = next_preferred(most - claimed)) {
    // A host page that no longer fits waits for the next time.
    if (!out.empty() && range->run.count > most - claimed) break;
    sent_[range->block].set_range(range->run.first, range->run.count);
    settle(range->block, range->run);
    claimed += range->run.count;
    out.push_back(*range);
    if (claimed >= most) break;
  }
  return out;
}

void UnsentPages::prefer(std::span<const PageRange> order) {
  for (const PageRange& range : order) {
    if (range.block >= settled_.size() || range.run.count == 0) continue;
    const std::uint64_t pages = settled_[range.block].size();
    if (range.run.first >= pages || range.run.count > pages - range.run.first) continue;
    preferred_.push_back({range.block, outward(range.block, range.run)});
  }
}

}  // namespace migrationd::postcopy
