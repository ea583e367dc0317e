// SPDX-License-Identifier: Apache-2.0
//
// StorePlain: arriving pages into memfd blocks.
//
// Two ways into a block, chosen per run of pages by what was done with them before (CPU seconds per GiB, Linux 6.18):
//                       pwritev(memfd)   engine view
//   never stored             0.50             0.80      the kernel neither zeroes the page nor takes a fault
//   stored once              0.35             0.58      the engine view has no mapping of it yet
//   stored twice             0.35             0.58, and 0.18 ever after: such pages are hot and will come again
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
    Bitmap hot;       // stored more than once: the engine view is used from now on
    Bitmap received;  // stored, or a zero record came
  };
  explicit StorePlain(RamMap& map);
  Result<void> write_to_file(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages);
  static void note_stored(Block& block, std::size_t first, std::size_t end) noexcept;
  static void copy_to_view(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages) noexcept;

  RamMap& map_;
  std::vector<Block> blocks_;
  std::vector<iovec> rest_;  // of a short write
};

}  // namespace migrationd::ram
