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
#include "ram/userfaultfd.hpp"

#include <memory>
#include <span>
#include <vector>

namespace migrationd::ram {

class DirtyLogWp final : public DirtyLog {
 public:
  // As make_dirty_log(). Opens nothing until start().
  static Result<std::unique_ptr<DirtyLogWp>> make(RamMap& map, std::span<std::byte* const> views);
  ~DirtyLogWp() override { stop(); }

  Result<void> start() override;
  Result<std::uint64_t> sync(DirtyBitmaps& into) override;
  void stop() noexcept override;
  std::string_view kind() const noexcept override { return "userfaultfd-wp-async"; }

 private:
  struct Watched {
    AddressRange view;
    DataTracker data;
  };
  DirtyLogWp(RamMap& map, std::span<std::byte* const> views) : map_(&map), views_(views.begin(), views.end()) {}
  Result<void> watch_blocks();
  Result<std::uint64_t> sync_block(Watched& block, Bitmap& into);

  RamMap* map_;
  std::vector<std::byte*> views_;
  std::unique_ptr<Userfaultfd> userfault_;  // present while started
  std::unique_ptr<PagemapScanner> scanner_;
  std::vector<Watched> blocks_;
};

}  // namespace migrationd::ram
