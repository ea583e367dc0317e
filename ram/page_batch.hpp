// SPDX-License-Identifier: Apache-2.0
//
// PageBatch: what to send next. Pages of one block, as runs in ascending order; their dirty bits are cleared already,
// so a write from now on makes them dirty again (docs/architecture.md section 7).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace migrationd::ram {

// Counted in target pages from the block's start.
struct PageRun {
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  bool operator==(const PageRun&) const = default;
};

enum class BatchKind : std::uint8_t {
  data,         // read the pages
  fresh_holes,  // holes never sent before: zeros, and nothing at all to a destination that starts empty
  holes,        // were sent before and are holes now: zeros. Neither kind of hole is ever read.
};

class PageBatch {
 public:
  PageBatch() = default;

  std::size_t block() const noexcept { return block_; }
  BatchKind kind() const noexcept { return kind_; }
  const std::vector<PageRun>& runs() const noexcept { return runs_; }
  std::uint64_t pages() const noexcept { return pages_; }
  bool empty() const noexcept { return pages_ == 0; }

  // Empties it for another block or kind; keeps its memory.
  void reset(std::size_t block, BatchKind kind) noexcept {
    block_ = block;
    kind_ = kind;
    runs_.clear();
    pages_ = 0;
  }
  void add(PageRun run) {
    pages_ += run.count;
    if (!runs_.empty() && runs_.back().first + runs_.back().count == run.first) {
      runs_.back().count += run.count;
    } else {
      runs_.push_back(run);
    }
  }

 private:
  std::size_t block_ = 0;
  BatchKind kind_ = BatchKind::data;
  std::vector<PageRun> runs_;
  std::uint64_t pages_ = 0;
};

}  // namespace migrationd::ram
