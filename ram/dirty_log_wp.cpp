// SPDX-License-Identifier: Apache-2.0
#include "ram/dirty_log_wp.hpp"

#include <fmt/format.h>

namespace migrationd::ram {

Result<std::unique_ptr<DirtyLogWp>> DirtyLogWp::make(RamMap& map, std::span<std::byte* const> views) {
  if (views.size() != map.size()) return machine_error("dirty log: every block needs its guest view");
  return std::unique_ptr<DirtyLogWp>(new DirtyLogWp(map, views));
}

Result<void> DirtyLogWp::watch_blocks() {
  for (std::size_t index = 0; index < map_->size(); ++index) {
    const RamBlock& block = map_->at(index);
    const AddressRange view{views_[index], block.length()};
    MD_CHECK(userfault_->register_range(view, UFFDIO_REGISTER_MODE_WP));
    MD_TRY(DataTracker data, DataTracker::of(block));
    blocks_.push_back(Watched{view, std::move(data)});
    MD_TRY([[maybe_unused]] const auto pages, blocks_.back().data.admit_new(nullptr, [&](Extent range) {
      return scanner_->protect({view.start + range.start, range.length});
    }));
  }
  return {};
}

Result<void> DirtyLogWp::start() {
  stop();
  MD_TRY(auto scanner, PagemapScanner::open());
  MD_TRY(auto userfault,
         Userfaultfd::open(
             UFFD_FEATURE_PAGEFAULT_FLAG_WP | kernel::feature_wp_hugetlbfs_shmem | kernel::feature_wp_async, true));
  scanner_ = std::make_unique<PagemapScanner>(std::move(scanner));
  userfault_ = std::make_unique<Userfaultfd>(std::move(userfault));
  auto watching = watch_blocks();
  if (!watching) {
    stop();
    return std::move(watching).error().with("start the dirty log");
  }
  return {};
}

Result<std::uint64_t> DirtyLogWp::sync_block(Watched& block, Bitmap& into) {
  std::uint64_t found = 0;
  MD_CHECK(block.data.for_each_watched([&](Extent range) {
    return scanner_->fetch_written({block.view.start + range.start, range.length},
                                   [&](std::uint64_t offset, std::uint64_t length) {
                                     into.set_range((range.start + offset) / page_size, length / page_size);
                                     block.data.note_written({range.start + offset, length});
                                     found += length / page_size;
                                   });
  }));
  MD_TRY(const std::uint64_t fresh, block.data.admit_new(&into, [&](Extent range) {
    return scanner_->protect({block.view.start + range.start, range.length});
  }));
  MD_TRY(const std::uint64_t holes, block.data.find_holes(into));
  return found + fresh + holes;
}

Result<std::uint64_t> DirtyLogWp::sync(DirtyBitmaps& into) {
  if (userfault_ == nullptr) return machine_error("dirty log: asked before it was started");
  std::uint64_t found = 0;
  for (std::size_t index = 0; index < blocks_.size(); ++index) {
    auto pages = sync_block(blocks_[index], into[index]);
    if (!pages)
      return std::move(pages).error().with(fmt::format("dirty log of '{}'", printable(map_->at(index).name())));
    found += *pages;
  }
  return found;
}

void DirtyLogWp::stop() noexcept {
  // Nobody ever waits for an asynchronous fault. Closing the last descriptor unregisters every area, and clears
  // the protection of its pages.
  blocks_.clear();
  userfault_.reset();
  scanner_.reset();
}

}  // namespace migrationd::ram
