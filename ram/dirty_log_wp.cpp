// SPDX-License-Identifier: Apache-2.0
#include "ram/dirty_log_wp.hpp"

#include <fmt/format.h>

namespace migrationd::ram {

Result<std::unique_ptr<DirtyLogWp>> DirtyLogWp::make(RamMap& map, GuestSpace& space, BlockChoice blocks) {
  if (space.addresses().size() != map.size()) return machine_error("dirty log: every block needs its guest view");
  return std::unique_ptr<DirtyLogWp>(new DirtyLogWp(map, space, std::move(blocks)));
}

Result<void> DirtyLogWp::protect(const Watched& block, Extent range) const {
  return scanner_->protect(space_->range(block.index, range.start, range.length));
}

Result<void> DirtyLogWp::watch_blocks() {
  for (std::size_t index = 0; index < map_->size(); ++index) {
    if (!choice_.has(index)) continue;
    const RamBlock& block = map_->at(index);
    MD_CHECK(userfault_->register_range(space_->range(index, 0, block.length()), UFFDIO_REGISTER_MODE_WP));
    MD_TRY(DataTracker data, DataTracker::of(block));
    blocks_.push_back(Watched{index, std::move(data)});
    MD_TRY([[maybe_unused]] const auto pages,
           blocks_.back().data.admit_new(nullptr, [&](Extent range) { return protect(blocks_.back(), range); }));
  }
  return {};
}

Result<void> DirtyLogWp::start() {
  stop();
  MD_TRY(Watch watch,
         space_->watch(WatchPurpose::protect_async,
                       UFFD_FEATURE_PAGEFAULT_FLAG_WP | kernel::feature_wp_hugetlbfs_shmem | kernel::feature_wp_async));
  userfault_.emplace(std::move(watch.userfault));
  scanner_ = std::move(watch.pages);
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
    return scanner_->fetch_written(space_->range(block.index, range.start, range.length),
                                   [&](std::uint64_t offset, std::uint64_t length) {
                                     into.set_range((range.start + offset) / page_size, length / page_size);
                                     block.data.note_written({range.start + offset, length});
                                     found += length / page_size;
                                   });
  }));
  MD_TRY(const std::uint64_t fresh, block.data.admit_new(&into, [&](Extent range) { return protect(block, range); }));
  MD_TRY(const std::uint64_t holes, block.data.find_holes(into));
  return found + fresh + holes;
}

Result<std::uint64_t> DirtyLogWp::sync(DirtyBitmaps& into) {
  if (!userfault_) return machine_error("dirty log: asked before it was started");
  std::uint64_t found = 0;
  for (Watched& block : blocks_) {
    auto pages = sync_block(block, into[block.index]);
    if (!pages)
      return std::move(pages).error().with(fmt::format("dirty log of '{}'", printable(map_->at(block.index).name())));
    found += *pages;
  }
  return found;
}

void DirtyLogWp::stop() noexcept {
  if (!userfault_) return;
  // Nobody ever waits for an asynchronous fault. Closing the last descriptor unregisters every area, and clears the
  // protection of its pages; where another process has a duplicate, that waits for no word of its.
  if (!space_->is_here()) {
    for (const Watched& block : blocks_)
      [[maybe_unused]] const auto ended =
          userfault_->unregister_range(space_->range(block.index, 0, map_->at(block.index).length()));
  }
  blocks_.clear();
  userfault_.reset();
  scanner_.reset();
  space_->unwatch(WatchPurpose::protect_async);
}

}  // namespace migrationd::ram
