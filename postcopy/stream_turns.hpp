// SPDX-License-Identifier: Apache-2.0
//
// StreamTurns: the background streams of one host take turns, and know of each other's requests.
//
// Each instant resume has a process of its own, and each stream keeps two processors busy: ours that reads and sends,
// and the destination's that takes pages and places them. With several at once there is no processor left for the
// guests' requests. So there is a number of slots, half the processors; who streams behind holds one.
//
// The board is a file in shared memory, of this user alone. A slot is a byte of it under an open-file-description lock,
// which the kernel takes back from who dies. Beside them are three kinds of times (CLOCK_MONOTONIC, nanoseconds): when
// a machine was resumed last, when anybody asked for a page last, and when the holder of each slot got on last. They
// are read and written as whole words by pread and pwrite, never mapped: a file that another one cuts off is a time of
// zero, not a signal.
//
// Nobody waits for ever: a holder gives its slot up after `longest_turn` if another one waits; and the slot of one that
// has not got on for `longest_standstill`, because its peer takes nothing, say, does not count. Times to come (of
// another time namespace, or rubbish) are none. Where the board cannot be had (no /dev/shm, or not ours), everybody
// has a turn, and only knows of its own requests.
//
// Errors: none; this only makes things smooth. Thread: note_...() and urgent() any; the others one, the mover.
#pragma once

#include "base/unique_fd.hpp"
#include "postcopy/background_pace.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace migrationd::postcopy {

class StreamTurns {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;

  static constexpr std::chrono::milliseconds longest_turn{500};
  static constexpr std::chrono::milliseconds longest_standstill{250};
  // Who has no turn asks again after this long.
  static constexpr std::chrono::milliseconds ask_again{10};
  static constexpr std::size_t most_slots = 64;

  // Of this user: "/dev/shm/migrationd-turns-UID".
  static std::string usual_path();
  // Half the processors that this process may use.
  static std::size_t usual_slots() noexcept;
  // `slots`: from 1 to most_slots; the same for all who use the board.
  StreamTurns(const std::string& path, std::size_t slots) noexcept;

  bool shared() const noexcept { return static_cast<bool>(board_); }

  // A machine begins to run there; a page was asked for. Cheap: the board is told once in a while.
  void note_started(TimePoint now) noexcept;
  void note_asked(TimePoint now) noexcept;
  BackgroundPace::Urgent urgent(TimePoint now) const noexcept;

  // True: a piece may be sent. Before every piece.
  bool take(TimePoint now) noexcept;
  // While nothing is to be sent.
  void give_back() noexcept;

 private:
  TimePoint read_time(std::size_t place, TimePoint now) const noexcept;
  void write_time(std::size_t place, TimePoint time) const noexcept;
  bool lock(std::size_t slot, bool on) const noexcept;
  bool another_waits(TimePoint now) const noexcept;
  bool anyone_stands_still(TimePoint now) const noexcept;

  UniqueFd board_;
  const std::size_t slots_;
  // Nanoseconds of this process's own; also those that the board was told.
  std::atomic<std::int64_t> started_{0};
  std::atomic<std::int64_t> asked_{0};
  std::atomic<std::int64_t> told_{0};

  std::optional<std::size_t> slot_;
  TimePoint since_{};       // the slot was taken
  TimePoint got_on_{};      // the board was told that we got on
  TimePoint away_until_{};  // it was given up for another one
};

}  // namespace migrationd::postcopy
