// SPDX-License-Identifier: Apache-2.0
//
// DestinationPages: which pages the destination of a postcopy has, and which it has asked for.
//
// One *received* bit per target page, from ADVISE on: set by every record of the precopy phase and by every placement
// afterwards, cleared by discards. It is what a recovery reports (docs/spec/postcopy.md section 12.4). One *asked* bit
// per host page. Outstanding is asked and not received, and nothing else is remembered of a request: so a recovery
// asks again for exactly what somebody waits for.
//
// The received bit is set after the page was placed. A fault that finds it set met either a page that came as zero
// before LISTEN, and is a hole, or one that was placed meanwhile; both are served by placing zeros where nothing is.
//
// Pages are target pages (4096 bytes); `host page` arguments are the first target page of one.
//
// Thread: any. A lock of its own, held for the change of a few words: listen, preempt and fault thread meet here with
// every page. Blocktime is counted here too, because it is the same moments (destination_blocktime.hpp).
#pragma once

#include "base/bitmap.hpp"
#include "base/bytes.hpp"
#include "postcopy/block_shape.hpp"
#include "postcopy/destination_blocktime.hpp"

#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

namespace migrationd::postcopy {

// What somebody who needs a page finds.
enum class PageNeed : std::uint8_t {
  ask,       // it is outstanding from now on: send the request
  asked,     // it was already
  received,  // it is there, or it is a hole that came as zero
};

// What is to be done with a page that came.
enum class Arrival : std::uint8_t {
  place,     // place it, then note_received()
  noted,     // nothing more
  repeated,  // it was received before: nothing
};

struct HostPage {
  std::size_t block = 0;
  std::uint64_t page = 0;  // its first target page
  bool operator==(const HostPage&) const = default;
};

class DestinationPages {
 public:
  explicit DestinationPages(std::vector<BlockShape> blocks);

  // Immutable; no lock.
  const std::vector<BlockShape>& blocks() const noexcept { return blocks_; }
  // The host page that holds target page `page` of `block`.
  HostPage host_page(std::size_t block, std::uint64_t page) const noexcept {
    return {block, page - page % blocks_[block].host_pages};
  }

  // Somebody needs the page. `thread`: who waits for it, for the blocktime; 0: nobody does.
  PageNeed need(HostPage page, int thread = 0);
  // `count` target pages came and are placed. Returns how many of them were new.
  std::uint64_t note_received(std::size_t block, std::uint64_t page, std::uint64_t count);
  // `count` target pages from `page` on have come, which are placed together. A zero page that nobody waits for need
  // not be placed: it is noted, and stays the hole that it is until somebody touches it.
  Arrival arrives(std::size_t block, std::uint64_t page, std::uint64_t count, bool zero);
  // Taken away again by a discard, or emptied.
  void note_dropped(std::size_t block, std::uint64_t page, std::uint64_t count);
  // Host pages of which only a part was received count as not received; their parts come again.
  void forget_partial();

  std::uint64_t outstanding() const;
  std::vector<HostPage> outstanding_pages() const;
  // Target pages not received.
  std::uint64_t missing() const;
  // The first host page at or after `from` (in the order of blocks) that was neither received nor asked for.
  std::optional<HostPage> next_unasked(HostPage from) const;
  // Bits in the order of the wire, for RECV_BITMAP: received_bitmap_bytes(pages) bytes.
  Bytes received_bitmap(std::size_t block) const;

  // From LISTEN on, when the capability is on.
  void start_blocktime(std::size_t vcpus);
  std::optional<BlocktimeReport> blocktime() const;

 private:
  struct Block {
    Bitmap received;
    Bitmap asked;  // by first target page; cleared when received
  };
  bool received_locked(HostPage page) const noexcept;
  std::uint64_t unit(std::size_t block) const noexcept { return blocks_[block].host_pages; }

  const std::vector<BlockShape> blocks_;
  mutable std::mutex mutex_;
  std::vector<Block> state_;
  std::uint64_t outstanding_ = 0;
  std::optional<Blocktime> blocktime_;
};

}  // namespace migrationd::postcopy
