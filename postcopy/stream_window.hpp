// SPDX-License-Identifier: Apache-2.0
//
// StreamWindow: how much of the background may be under way. Pure arithmetic.
//
// A page that somebody waits for stands behind everything that was written before it: in our socket's buffer, in the
// peer's, and in what the peer has read and not yet placed. On one connection that is megabytes, and milliseconds.
// Buffer sizes do not bound it (a TCP receiver's grows by itself), but the protocol does: the destination answers a
// PING when its page reader comes to it. So the background goes in pieces, each followed by a PING, and only so many
// pieces may be unanswered: many while nobody asks for anything, few for a while after a request.
//
//   guest waits for at most   few * piece + one piece being written   bytes in front of its page
//
// With a preempt channel a requested page stands behind nothing and waits for processors only: the window stays wide.
// With 256 KiB the stream came to a tenth of its speed while a guest read its memory through, and the guest asked for
// pages that would have been there (tests/bench, faults).
//
// Values of PING: one number per piece, above those that QEMU uses (switch_over.hpp). A PONG with a number that is not
// under way is of no meaning here.
//
// Thread: its users share it under one lock.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace migrationd::postcopy {

class StreamWindow {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  static constexpr std::uint64_t piece_pages = 32;  // 128 KiB
  static constexpr std::uint32_t many = 16;
  static constexpr std::uint32_t few = 2;
  static constexpr std::chrono::milliseconds asked_lately{20};

  // `lately_open`: how many pieces may be unanswered for a while after a request; few, or many with a preempt channel.
  explicit StreamWindow(std::uint32_t lately_open = few) noexcept : lately_open_(lately_open) {}

  // May another piece be written now?
  bool open(TimePoint now) const noexcept {
    const bool lately = asked_ && now - *asked_ < asked_lately;
    return sent_ - answered_ < (lately ? lately_open_ : many);
  }
  // A piece is about to be written: the value of the PING behind it.
  std::uint32_t piece_sent() noexcept { return first_value + sent_++; }
  // True when it was one of ours and the window moved.
  bool answered(std::uint32_t value) noexcept {
    const std::uint32_t number = value - first_value + 1;  // pieces up to and including this one
    if (value < first_value || number - answered_ > sent_ - answered_ || number == answered_) return false;
    answered_ = number;
    return true;
  }
  // All pieces were read and placed at the other end.
  bool all_answered() const noexcept { return sent_ == answered_; }
  void requested(TimePoint now) noexcept { asked_ = now; }
  // A new connection: nothing is under way on it. Numbers go on, so that late answers are not taken for new ones.
  void restart() noexcept { answered_ = sent_; }

 private:
  static constexpr std::uint32_t first_value = 0x10000;

  std::uint32_t lately_open_;
  // Both wrap around together after 512 TiB.
  std::uint32_t sent_ = 0;
  std::uint32_t answered_ = 0;
  std::optional<TimePoint> asked_;
};

}  // namespace migrationd::postcopy
