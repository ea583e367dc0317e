// SPDX-License-Identifier: Apache-2.0
//
// GuestSpace: where the guest runs, as far as its memory is watched.
//
// That is an address space (this process's for a guest of our own, another process's for an attached one) with one
// mapping per block, and the means to watch it: a userfaultfd belongs to the address space it was made in, and so does
// a page map. Both work from any process that holds their descriptors, and so do the ioctls on them; addresses of
// another space are numbers here, never pointers (is_here()).
//
// A watch is for one purpose and has a userfaultfd of its own: an area has one at a time, and features are fixed at the
// handshake (docs/architecture.md section 13). unwatch() ends it after the descriptor was closed: who made it in
// another process keeps a duplicate until then, so that our death leaves nobody with zero pages.
//
// Thread: the one that works on the machine.
#pragma once

#include "base/result.hpp"
#include "ram/ram_map.hpp"
#include "ram/userfaultfd.hpp"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace migrationd::ram {

enum class WatchPurpose : std::uint8_t {
  protect_async = 1,  // the kernel lifts protection itself; read by the page map
  protect_sync,       // writers wait for us to lift it
  missing,            // who touches a page that is not there waits for it
};

struct Watch {
  Userfaultfd userfault;
  std::optional<PagemapScanner> pages;  // with protect_async
};

class GuestSpace {
 public:
  // One address per block of the machine's map, in its order, aligned to the block's backing page.
  explicit GuestSpace(std::vector<std::byte*> addresses) noexcept : addresses_(std::move(addresses)) {}
  GuestSpace(const GuestSpace&) = delete;
  GuestSpace& operator=(const GuestSpace&) = delete;
  virtual ~GuestSpace() = default;

  std::span<std::byte* const> addresses() const noexcept { return addresses_; }
  AddressRange range(std::size_t block, std::uint64_t offset, std::uint64_t length) const noexcept {
    return {addresses_[block] + offset, length};
  }
  // Whether the addresses are pointers of this process.
  virtual bool is_here() const noexcept = 0;

  // Opens the means for `purpose`; the handshake is done. Errors name what the kernel lacks or who may not.
  virtual Result<Watch> watch(WatchPurpose purpose, std::uint64_t features) = 0;
  // The descriptors of watch() are closed: whoever keeps duplicates may close them too. Never fails the machine.
  virtual void unwatch(WatchPurpose) noexcept {}
  // No transparent huge pages in any mapping of the space: they would fill what is missing.
  virtual Result<void> forbid_huge_pages(const RamMap& map) = 0;

 private:
  std::vector<std::byte*> addresses_;
};

// This process.
class LocalSpace final : public GuestSpace {
 public:
  explicit LocalSpace(std::vector<std::byte*> addresses) noexcept : GuestSpace(std::move(addresses)) {}
  explicit LocalSpace(std::span<const Mapping> views) : GuestSpace(addresses_of(views)) {}

  bool is_here() const noexcept override { return true; }
  Result<Watch> watch(WatchPurpose purpose, std::uint64_t features) override;
  Result<void> forbid_huge_pages(const RamMap& map) override;

 private:
  static std::vector<std::byte*> addresses_of(std::span<const Mapping> views);
};

}  // namespace migrationd::ram
