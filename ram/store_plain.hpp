// SPDX-License-Identifier: Apache-2.0
//
// StorePlain: arriving pages into memfd blocks.
//
// Two ways into a block, chosen per run of pages by the `stored` bitmap:
//   first time   pwritev(memfd): the kernel allocates the page and copies into it, without zeroing it before and
//                without a fault per page
//   again        a copy through the engine view, which needs no system call
// hugetlb has no write(2): always the engine view there.
//
// Zero pages: a page never stored is a hole, and a hole reads as zeros, so there is nothing to do; looking at it would
// allocate it. A page stored before is cleared. For that to be right every block begins empty: make() gives back
// whatever a block of an earlier attempt still holds.
// Thread: the mover.
#pragma once

#include "base/bitmap.hpp"
#include "ram/page_store.hpp"

#include <memory>
#include <vector>

namespace migrationd::ram {

class StorePlain final : public PageStore {
 public:
  // The map outlives it. Blocks are emptied.
  static Result<std::unique_ptr<StorePlain>> make(RamMap& map);

  Result<void> place(const GuestSpan& span, std::span<const iovec> pages) override;
  Result<void> place_zero(const GuestSpan& span) override;
  Result<std::span<std::byte>> page_to_change(const GuestSpan& page) override;

  // Pages of the block that no record ever named. 0 for every block is what an honest source without skip-holes
  // sends; QEMU may leave out unplugged and ballooned pages (stream.md 5.3).
  std::uint64_t pages_never_received(std::size_t block) const noexcept;

 private:
  struct Block {
    Bitmap stored;    // holds bytes of ours
    Bitmap received;  // stored, or a zero record came
  };
  explicit StorePlain(RamMap& map);
  Result<void> write_fresh(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages);
  static void copy_over(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages) noexcept;

  RamMap& map_;
  std::vector<Block> blocks_;
  std::vector<iovec> rest_;  // of a short write
};

}  // namespace migrationd::ram
