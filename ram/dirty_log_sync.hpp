// SPDX-License-Identifier: Apache-2.0
//
// DirtyLogSync: dirty pages by synchronous userfaultfd write protection, for kernels before 6.7.
//
// The guest's first write to a protected page sleeps until the fault thread has set the page's bit and lifted its
// protection, in that order: a bit set late would lose the write.
//
// One lock covers "set the bit, lift" here and "take the bit, protect" in sync(). Without it sync could take a bit
// between the two halves of a fault, and protect a page that the fault thread unprotects a moment later: writes from
// then on would go unseen. The lock is held for one fault, or for 64 pages of a sync.
//
// stop() lifts the protection of everything first, which wakes all waiters, and only then ends the thread and
// unregisters: UFFDIO_UNREGISTER does not wake waiters of write-protect mode (docs/architecture.md section 13).
#pragma once

#include "base/stop.hpp"
#include "ram/data_tracker.hpp"
#include "ram/dirty_log.hpp"
#include "ram/guest_space.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace migrationd::ram {

class DirtyLogSync final : public DirtyLog {
 public:
  // As make_dirty_log(). Opens nothing until start().
  static Result<std::unique_ptr<DirtyLogSync>> make(RamMap& map, GuestSpace& space, BlockChoice blocks = {});
  ~DirtyLogSync() override { stop(); }

  Result<void> start() override;
  Result<std::uint64_t> sync(DirtyBitmaps& into) override;
  void stop() noexcept override;
  std::string_view kind() const noexcept override { return "userfaultfd-wp-sync"; }

 private:
  struct Watched {
    std::size_t index;  // of the block in the map
    AddressRange view;
    std::uint64_t backing_page;
    DataTracker data;
    Bitmap written;  // per target page; guarded by lock_
  };
  DirtyLogSync(RamMap& map, GuestSpace& space, BlockChoice blocks)
      : map_(&map), space_(&space), choice_(std::move(blocks)) {}
  Result<void> watch_blocks();
  Result<void> protect(const Watched& block, Extent range) const;
  Result<std::uint64_t> take_written(Watched& block, Bitmap& into);
  Result<std::uint64_t> sync_block(Watched& block, Bitmap& into);
  void serve_faults();
  void serve_fault(std::uint64_t address);
  void lift_everything() noexcept;

  RamMap* map_;
  GuestSpace* space_;
  BlockChoice choice_;
  std::optional<Userfaultfd> userfault_;  // present while started
  std::vector<Watched> blocks_;           // fixed while the thread runs, `written` aside
  std::mutex lock_;                       // see above
  std::unique_ptr<StopSource> thread_stop_;
  std::atomic<bool> thread_failed_{false};
  std::thread thread_;
};

}  // namespace migrationd::ram
