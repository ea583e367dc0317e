// SPDX-License-Identifier: Apache-2.0
//
// StorePlain: arriving pages into memfd blocks.
//
// Ways into a block, chosen per run of pages by what is known of them (CPU seconds per GiB, Linux 6.18, one copy):
//                       pwritev(memfd)   engine view   engine view, page tables filled by reading a byte per 64 KiB
//   not allocated            0.50             0.80           -       the kernel neither zeroes the page nor faults
//   allocated                0.35             0.58       0.10 + 0.21 (POPULATE_WRITE would be 0.22 + 0.21)
//   mapped                   0.35             0.21           -
// So: pwritev for holes; the engine view for memory that is there. A hole is never read: that would
// allocate it. hugetlb has no write(2): always the engine view there.
//
// Where the kernel gives memfds transparent huge pages (shmem_enabled: advise, within_size or always; usually never), a
// whole one is allocated at once for 0.20 and filled through the engine view: allocate_huge(), for who knows that all
// of its pages will come, as a mapped-ram file's reader does.
//
// Old bytes. A block may hold the pages of an earlier attempt, or of a guest that ran here. Giving them back to the
// kernel to get others costs more than the copy, so they are kept and are *stale*: allocated, not received, worthless.
// A stored page is no longer stale; a zero record clears a stale page; finish() gives back what is stale at the end.
// Since nobody needs a stale page's bytes, a reader may guess and let the socket's bytes fall into it directly
// (pages_to_guess(), scatter_reader.hpp): a wrong guess leaves it as stale as it was.
//
// Zero pages: one neither stored nor stale is a hole, and a hole reads as zeros, so there is nothing to do; looking at
// it would allocate it.
//
// Thread: any. A lock guards the bitmaps, for bits of pages that two threads store share words; it is held while bits
// are asked and set and page tables are filled, not while bytes move. Two threads that store one page at the same time
// leave a mixture: the barriers of the stream keep honest ones from it.
#pragma once

#include "base/bitmap.hpp"
#include "ram/page_store.hpp"

#include <memory>
#include <mutex>
#include <vector>

namespace migrationd::ram {

class StorePlain final : public PageStore {
 public:
  // The map outlives it. Whatever the blocks hold is stale from now on; but those that are kept (by index; empty: none)
  // hold what they shall hold: no page comes for them (store_kept.hpp).
  static Result<std::unique_ptr<StorePlain>> make(RamMap& map, const std::vector<bool>& kept = {});

  Result<void> place(const GuestSpan& span, std::span<const iovec> pages) override;
  Result<void> place_zero(const GuestSpan& span) override;
  bool receive_in_place(const GuestSpan& span) override;
  bool allocate_huge(const GuestSpan& span) override;
  Result<std::span<std::byte>> page_to_change(const GuestSpan& page) override;
  std::size_t pages_to_guess(const GuestSpan& ahead) override;
  void placed(const GuestSpan& span) override;
  Result<void> finish() override;

 private:
  struct Block {
    Bitmap stored;  // holds bytes of ours
    Bitmap mapped;  // stored more than once, or populated: the engine view is used from now on
    Bitmap stale;   // allocated and holds bytes nobody wants; never together with `stored`
  };
  struct Part {
    std::size_t end = 0;
    bool by_view = false;  // else by the file
  };
  explicit StorePlain(RamMap& map);
  Result<void> note_stale(std::size_t index);
  Part next_part(std::size_t index, std::size_t page, std::size_t end) noexcept;
  static Result<void> write_to_file(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages);
  Result<void> forget_stale(std::size_t index);
  static void note_stored(Block& block, std::size_t first, std::size_t end) noexcept;
  static void copy_to_view(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages) noexcept;
  void clear(const RamBlock& block, const Bitmap& those, std::size_t first, std::size_t end) noexcept;
  void map_stale(const RamBlock& target, Block& block, std::size_t page) noexcept;

  RamMap& map_;
  std::mutex mutex_;
  std::vector<Block> blocks_;
};

}  // namespace migrationd::ram
