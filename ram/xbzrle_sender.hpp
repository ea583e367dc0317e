// SPDX-License-Identifier: Apache-2.0
//
// XbzrleSender: what the receiver has of the pages that change again and again, so that only the change is sent
// (stream.md 5.4).
//
// The delta transforms what the receiver has. So the cache holds exactly what was last sent, never what the page held
// a moment earlier or later: a page that a running guest writes is copied first, and it is the copy that is compared,
// sent and kept.
//
// The cache is direct-mapped by page number. A page used in this pass or the one before is not replaced: with a working
// set larger than the cache, a part of it profits all the time instead of all of it never. What is not in the cache is
// sent whole. Memory is reserved, and used only as it fills; no cache is larger than the machine's memory.
//
// What choose() returns lies in the cache or in this object: valid until the next begin_pass(), the delta until the
// next choose(). The sink must have flushed before begin_pass().
// Thread: the mover.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/layout.hpp"
#include "ram/counters.hpp"
#include "ram/ram_map.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

namespace migrationd::ram {

class XbzrleSender {
 public:
  enum class Form : std::uint8_t {
    unchanged,  // the receiver has it: nothing to send
    delta,      // bytes: the delta
    copy,       // bytes: the page, which will not change under us
    page,       // not kept: send the guest's page
  };
  struct Choice {
    Form form = Form::page;
    ByteView bytes;
  };

  // The map and the counters outlive it.
  XbzrleSender(const RamMap& map, XbzrleCounters& counters);
  ~XbzrleSender();
  XbzrleSender(const XbzrleSender&) = delete;
  XbzrleSender& operator=(const XbzrleSender&) = delete;

  // A new pass, with a cache of that many bytes (a power of two, at least a page). Another size than before starts
  // with an empty cache. Error: ErrorKind::io, no address space; there is no cache then.
  Result<void> begin_pass(std::uint64_t cache_bytes);
  // How to send a page that is not zero.
  Choice choose(std::size_t block, std::uint64_t page, const std::byte* memory);
  // Zero records were sent for these pages.
  void sent_zeros(std::size_t block, std::uint64_t first, std::uint64_t count) noexcept;

 private:
  struct Slot {
    std::uint64_t key = 0;   // page number of the machine + 1; 0: empty
    std::uint64_t pass = 0;  // last used in
  };
  std::uint64_t key_of(std::size_t block, std::uint64_t page) const noexcept { return base_[block] + page + 1; }
  std::byte* copy_of(std::uint64_t slot) const noexcept { return pages_.data() + slot * page_size; }
  Choice choose_known(Slot& slot, std::byte* copy, const std::byte* memory);
  Choice choose_unknown(Slot& slot, std::byte* copy, std::uint64_t key, const std::byte* memory);
  void take_rates() noexcept;

  XbzrleCounters& counters_;
  std::vector<std::uint64_t> base_;  // of each block, in pages
  std::uint64_t total_pages_ = 0;
  std::uint64_t cache_bytes_ = 0;  // as asked for
  std::uint64_t pass_ = 0;
  Mapping pages_;
  Mapping slot_memory_;
  Slot* slots_ = nullptr;
  std::uint64_t slot_count_ = 0;
  std::array<std::byte, page_size> now_{};
  std::array<std::byte, page_size> delta_{};
  // At the start of the pass, for its rates.
  std::uint64_t pages_before_ = 0, bytes_before_ = 0, misses_before_ = 0, asked_before_ = 0, asked_ = 0;
};

}  // namespace migrationd::ram
