// SPDX-License-Identifier: Apache-2.0
//
// MultifdBarrier: where the channels of a multifd destination and its main stream wait for each other
// (multifd.md section 8).
//
// A channel that has read SYNC waits in arrive() until the main stream comes to the matching place; the main stream
// waits in meet() until all channels have come, and releases them. Pages of two passes travel on different channels,
// so neither side may run past the other.
//
// What must not happen is an end with pages missing, or a wait for somebody who will never come. So the barrier also
// keeps the books: which channel has ended, which has read pages since the last meeting, and whether the main stream
// is in its last section, behind which no page may come.
//
// Thread: meet(), begin_last_section() and close() by the mover; the others by the thread of the channel named. A lock
// guards a few flags per channel: they are looked at together, once per packet at most.
#pragma once

#include "base/doorbell.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"

#include <chrono>
#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace migrationd::ram {

class MultifdBarrier {
 public:
  // `stop` outlives it.
  static Result<std::unique_ptr<MultifdBarrier>> make(std::size_t channels, const StopSource& stop);

  // --- channels -------------------------------------------------------------------------------------------------
  // SYNC was read: returns when the main stream has come too. Error: it came after the last one.
  Result<void> arrive(std::size_t channel);
  // A packet with pages was read. Error: behind the last meeting.
  Result<void> note_pages(std::size_t channel);
  // The peer ended the channel between two packets. Error: it must not yet.
  Result<void> note_end(std::size_t channel);
  // What ended the channel is of no interest: all is over, and it did not send pages behind the last meeting.
  bool may_ignore_failure(std::size_t channel) const;

  // --- main stream ----------------------------------------------------------------------------------------------
  // Waits for all channels and releases them; false when they have not come and nothing was heard of any for that long.
  // Error: one has ended without coming; cancelled.
  Result<bool> meet(std::chrono::milliseconds patience);
  // The error of a wait that is given up: names a channel that has not come.
  Error nobody_came(std::chrono::milliseconds waited) const;
  // From here on a channel may end.
  void begin_last_section();
  // The last section is over. Error: a channel has pages, or waits, behind the last meeting.
  Result<void> close();
  // The channels are to end: from here on all they get is `cancelled`.
  void abandon();

 private:
  struct Side {
    std::unique_ptr<Doorbell> released;
    bool arrived = false;
    bool ended = false;
    bool pages = false;  // since the last meeting
    bool late = false;   // sent what must not come behind the last one
  };
  MultifdBarrier(std::vector<Side> sides, std::unique_ptr<Doorbell> changed, const StopSource& stop) noexcept
      : sides_(std::move(sides)), changed_(std::move(changed)), stop_(stop) {}
  Result<bool> all_here() const;
  Result<void> check_open(Side& side) const;

  mutable std::mutex mutex_;
  std::vector<Side> sides_;
  std::unique_ptr<Doorbell> changed_;  // for the mover
  const StopSource& stop_;
  bool last_section_ = false;
  bool closed_ = false;
  bool abandoned_ = false;
};

}  // namespace migrationd::ram
