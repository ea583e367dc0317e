// SPDX-License-Identifier: Apache-2.0
#include "ram/dirty_log_sync.hpp"

#include "base/log.hpp"
#include "base/thread.hpp"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <array>

namespace migrationd::ram {

Result<std::unique_ptr<DirtyLogSync>> DirtyLogSync::make(RamMap& map, GuestSpace& space, BlockChoice blocks) {
  if (space.addresses().size() != map.size()) return machine_error("dirty log: every block needs its guest view");
  return std::unique_ptr<DirtyLogSync>(new DirtyLogSync(map, space, std::move(blocks)));
}

Result<void> DirtyLogSync::protect(const Watched& block, Extent range) const {
  return userfault_->write_protect({block.view.start + range.start, range.length}, true);
}

Result<void> DirtyLogSync::watch_blocks() {
  for (std::size_t index = 0; index < map_->size(); ++index) {
    if (!choice_.has(index)) continue;
    const RamBlock& block = map_->at(index);
    const AddressRange view = space_->range(index, 0, block.length());
    MD_CHECK(userfault_->register_range(view, UFFDIO_REGISTER_MODE_WP));
    MD_TRY(DataTracker data, DataTracker::of(block));
    blocks_.push_back(Watched{index, view, block.backing_page(), std::move(data), Bitmap(block.pages())});
  }
  return {};
}

Result<void> DirtyLogSync::start() {
  stop();
  MD_TRY(thread_stop_, StopSource::make());
  MD_TRY(Watch watch, space_->watch(WatchPurpose::protect_sync,
                                    UFFD_FEATURE_PAGEFAULT_FLAG_WP | kernel::feature_wp_hugetlbfs_shmem));
  userfault_.emplace(std::move(watch.userfault));
  auto started = watch_blocks();
  if (started) {
    // The thread is there before the first page is protected: nobody waits for one that never comes.
    thread_failed_ = false;
    started = start_thread(thread_, "start the fault server", [this] { serve_faults(); });
  }
  if (started) {
    for (Watched& block : blocks_) {
      const auto admitted = block.data.admit_new(nullptr, [&](Extent range) { return protect(block, range); });
      if (!admitted) {
        started = admitted.error();
        break;
      }
    }
  }
  if (!started) {
    stop();
    return std::move(started).error().with("start the dirty log");
  }
  return {};
}

void DirtyLogSync::serve_fault(std::uint64_t address) {
  for (Watched& block : blocks_) {
    const auto start = reinterpret_cast<std::uint64_t>(block.view.start);
    if (address < start || address - start >= block.view.length) continue;
    const std::uint64_t offset = (address - start) / block.backing_page * block.backing_page;
    const std::lock_guard guard(lock_);
    block.written.set_range(offset / page_size, block.backing_page / page_size);
    if (!userfault_->write_protect({block.view.start + offset, block.backing_page}, false)) thread_failed_ = true;
    return;
  }
}

void DirtyLogSync::serve_faults() {
  std::array<uffd_msg, 32> messages;
  while (!thread_stop_->requested()) {
    std::array<pollfd, 2> waits{pollfd{userfault_->fd(), POLLIN, 0}, pollfd{thread_stop_->fd(), POLLIN, 0}};
    if (::poll(waits.data(), waits.size(), -1) < 0 || waits[0].revents == 0) continue;
    // None: another read took it, or the fault was withdrawn.
    const std::size_t count = read_userfaults(userfault_->fd(), messages);
    for (std::size_t index = 0; index < count; ++index)
      if (messages[index].event == UFFD_EVENT_PAGEFAULT) serve_fault(messages[index].arg.pagefault.address);
  }
}

Result<std::uint64_t> DirtyLogSync::take_written(Watched& block, Bitmap& into) {
  std::uint64_t found = 0;
  const std::size_t group = std::max<std::size_t>(64, block.backing_page / page_size);
  for (std::size_t page = 0;;) {
    const std::lock_guard guard(lock_);
    page = block.written.find_set(page);
    if (page >= block.written.size()) return found;
    // One run, at most `group` pages: the lock must not keep a guest waiting for long.
    const std::size_t end = std::min(block.written.find_clear(page), page + group);
    block.written.clear_range(page, end - page);
    into.set_range(page, end - page);
    block.data.note_written({page * page_size, (end - page) * page_size});
    MD_CHECK(protect(block, {page * page_size, (end - page) * page_size}));
    found += end - page;
    page = end;
  }
}

Result<std::uint64_t> DirtyLogSync::sync_block(Watched& block, Bitmap& into) {
  MD_TRY(const std::uint64_t written, take_written(block, into));
  MD_TRY(const std::uint64_t fresh, block.data.admit_new(&into, [&](Extent range) { return protect(block, range); }));
  MD_TRY(const std::uint64_t holes, block.data.find_holes(into));
  return written + fresh + holes;
}

Result<std::uint64_t> DirtyLogSync::sync(DirtyBitmaps& into) {
  if (!userfault_) return machine_error("dirty log: asked before it was started");
  if (thread_failed_) return machine_error("dirty log: a page's write protection could not be lifted");
  std::uint64_t found = 0;
  for (Watched& block : blocks_) {
    auto pages = sync_block(block, into[block.index]);
    if (!pages)
      return std::move(pages).error().with(fmt::format("dirty log of '{}'", printable(map_->at(block.index).name())));
    found += *pages;
  }
  return found;
}

void DirtyLogSync::lift_everything() noexcept {
  for (Watched& block : blocks_) {
    // Only watched chunks carry protection; going over holes would build page tables for them.
    const auto lifted = block.data.for_each_watched([&](Extent range) {
      return userfault_->write_protect({block.view.start + range.start, range.length}, false);
    });
    if (!lifted) log::warning(lifted.error().text());
  }
}

void DirtyLogSync::stop() noexcept {
  if (!userfault_) return;
  lift_everything();
  if (thread_.joinable()) {
    thread_stop_->request();
    thread_.join();
  }
  if (!space_->is_here()) {
    for (const Watched& block : blocks_) [[maybe_unused]] const auto ended = userfault_->unregister_range(block.view);
  }
  blocks_.clear();
  userfault_.reset();  // the last close unregisters, and wakes whoever may still wait
  space_->unwatch(WatchPurpose::protect_sync);
  thread_stop_.reset();
}

}  // namespace migrationd::ram
