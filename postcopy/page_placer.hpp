// SPDX-License-Identifier: Apache-2.0
//
// PagePlacer: where the pages of a postcopy go, one host page at a time.
//
//   GuestMemory (guest_memory.hpp)  memory a guest runs in: atomically, waking whoever waits
//   MemoryPlacer                    memory nobody runs in (a parked machine): into the file behind it
//
// Thread: any; two threads never place the same page at the same time with different bytes, since the source sends
// each page once. A page that is there already stays as it is.
#pragma once

#include "base/result.hpp"
#include "ram/ram_map.hpp"

#include <cstddef>
#include <cstdint>

namespace migrationd::postcopy {

class PagePlacer {
 public:
  PagePlacer() = default;
  PagePlacer(const PagePlacer&) = delete;
  PagePlacer& operator=(const PagePlacer&) = delete;
  virtual ~PagePlacer() = default;

  // The host page that begins at target page `page`; `bytes` holds all of it.
  virtual Result<void> place(std::size_t block, std::uint64_t page, const std::byte* bytes) = 0;
  virtual Result<void> place_zero(std::size_t block, std::uint64_t page) = 0;
};

// Holes are zero already, so a zero page costs nothing.
class MemoryPlacer final : public PagePlacer {
 public:
  // Blocks of small pages, empty where nothing was received. The map outlives it.
  explicit MemoryPlacer(ram::RamMap& map) noexcept : map_(map) {}

  Result<void> place(std::size_t block, std::uint64_t page, const std::byte* bytes) override;
  Result<void> place_zero(std::size_t, std::uint64_t) override { return {}; }

 private:
  ram::RamMap& map_;
};

}  // namespace migrationd::postcopy
