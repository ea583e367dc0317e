// SPDX-License-Identifier: Apache-2.0
//
// GuestMemory: the memory of a guest that runs before its pages are there.
//
// From open() to close() every block is registered with a userfaultfd for missing pages in the *guest view*, and its
// *engine view* is inaccessible. The kernel asks the file whether a page is missing, not the mapping: a page that the
// engine merely read would be there, as zeros, and the guest would never ask for it. With the engine view shut such a
// read ends the process instead, where it is a bug that can be found (docs/architecture.md, section 13).
//
// Pages come by UFFDIO_COPY and UFFDIO_ZEROPAGE into the guest view: whole host pages, atomically, waking the waiters.
// "It exists already" is success after an explicit wake, because a copy that fails wakes nobody.
//
// The userfaultfd must not be closed while somebody waits: the kernel would let him go on with a page of zeros. So an
// end that is no end (the daemon stops while the guest waits) calls abandon(): the descriptor stays open until the
// process is gone, and so do the waiters. A guest in another process keeps a duplicate itself.
//
// Thread: place(), place_zero(), fault queries from any; open, close, abandon from one while no other uses it.
#pragma once

#include "base/result.hpp"
#include "postcopy/destination_pages.hpp"
#include "postcopy/page_placer.hpp"
#include "ram/guest_space.hpp"
#include "ram/ram_map.hpp"
#include "ram/userfaultfd.hpp"

#include <memory>
#include <optional>

namespace migrationd::postcopy {

// Can a guest in `space` be caught at what is missing of these blocks? The error names /dev/userfaultfd, the sysctl and
// the unit's setting. Opens and closes a userfaultfd; touches no memory.
Result<void> check_userfaultfd(const ram::RamMap& map, ram::GuestSpace& space);
// The same for a guest of this process.
Result<void> check_userfaultfd(const ram::RamMap& map);

// No transparent huge pages in any view: they would fill what is missing. Before the first discard. `space`: null where
// nothing runs.
Result<void> forbid_huge_pages(const ram::RamMap& map, ram::GuestSpace* space);

class GuestMemory final : public PagePlacer {
 public:
  // Both outlive it. Nobody touches the missing pages before open() has returned.
  static Result<std::unique_ptr<GuestMemory>> open(ram::RamMap& map, ram::GuestSpace& space);
  // As abandon(), if neither close() nor abandon() was called.
  ~GuestMemory() override;

  Result<void> place(std::size_t block, std::uint64_t page, const std::byte* bytes) override;
  Result<void> place_zero(std::size_t block, std::uint64_t page) override;

  // Readable when somebody faults; read(2) gives struct uffd_msg.
  int fd() const noexcept { return userfault_->fd(); }
  // The target page at an address of a guest view.
  std::optional<HostPage> locate(std::uint64_t address) const noexcept;

  // Everything came: what is still missing is zero. Waiters run on, the engine view is open again.
  Result<void> close();
  void abandon() noexcept;

 private:
  GuestMemory(ram::RamMap& map, ram::GuestSpace& space) noexcept : map_(map), space_(space) {}
  Result<void> shut_engine_view(bool shut);
  Result<void> wake(std::byte* at, std::uint64_t length);

  ram::RamMap& map_;
  ram::GuestSpace& space_;
  std::optional<ram::Userfaultfd> userfault_;
  ram::Mapping zeros_;  // a huge page of them, where there are huge pages
  bool open_ = false;
};

}  // namespace migrationd::postcopy
