// SPDX-License-Identifier: Apache-2.0
//
// DirtyLogWp: dirty pages by asynchronous userfaultfd write protection and PAGEMAP_SCAN (Linux 6.7 and newer).
//
// The kernel lifts a page's protection by itself on the first write, and the scan finds unprotected pages and
// protects them again in one step, so no write falls between. It sees writes by the CPU and by system calls through
// the guest view; not those through other mappings (the engine's own are the migration's business).
// A clean scan costs 0.7 ms per GiB of watched memory.
#pragma once

#include "ram/data_tracker.hpp"
#include "ram/dirty_log.hpp"
#include "ram/guest_space.hpp"

#include <memory>
#include <optional>
#include <utility>
#include <vector>

namespace migrationd::ram {

class DirtyLogWp final : public DirtyLog {
 public:
  // As make_dirty_log(). Opens nothing until start().
  static Result<std::unique_ptr<DirtyLogWp>> make(RamMap& map, GuestSpace& space, BlockChoice blocks = {});
  ~DirtyLogWp() override { stop(); }

  Result<void> start() override;
  Result<std::uint64_t> sync(DirtyBitmaps& into) override;
  void stop() noexcept override;
  std::string_view kind() const noexcept override { return "userfaultfd-wp-async"; }

 private:
  struct Watched {
    std::size_t index;  // of the block in the map
    DataTracker data;
  };
  DirtyLogWp(RamMap& map, GuestSpace& space, BlockChoice blocks)
      : map_(&map), space_(&space), choice_(std::move(blocks)) {}
  Result<void> watch_blocks();
  Result<void> protect(const Watched& block, Extent range) const;
  Result<std::uint64_t> sync_block(Watched& block, Bitmap& into);

  RamMap* map_;
  GuestSpace* space_;
  BlockChoice choice_;
  std::optional<Userfaultfd> userfault_;  // present while started
  std::optional<PagemapScanner> scanner_;
  std::vector<Watched> blocks_;
};

}  // namespace migrationd::ram
