// SPDX-License-Identifier: Apache-2.0
//
// BackgroundPace: when the background of an instant resume may send its next piece. Pure arithmetic.
//
// A machine that was just resumed asks for its working set in one burst: some hundred pages, one behind the other. Each
// takes four hand-overs between threads (its processor, QEMU's fault thread, us, QEMU's page reader), and on a machine
// whose processors are all busy copying pages that nobody has asked for, each of them waits for a processor: the guest
// stood for seconds. So the background leaves the processors to the requests:
//
//   at first   until a burst has gone quiet; `longest_at_first` after a machine was resumed at the latest
//   later      a moment behind every request, `longest_later` per piece at most
//
// But a machine that reads its memory through asks for all of it, page by page, and waits tens of microseconds for
// each; the stream brings the same pages in a fraction of that time. So the patience is a budget: every request takes
// one of `patience_most`, which come back at `patience_back` each, and with none left the stream goes at full speed.
//
// Requests and starts are those of all processes of this user on this host (stream_turns.hpp): the processors are
// shared by them.
//
// Thread: the mover.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace migrationd::postcopy {

class BackgroundPace {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  using Wait = std::chrono::nanoseconds;

  static constexpr Wait quiet_at_first = std::chrono::milliseconds(20);
  static constexpr Wait longest_at_first = std::chrono::seconds(1);
  // However many machines are started meanwhile.
  static constexpr Wait longest_in_all = std::chrono::seconds(5);
  static constexpr Wait quiet_later = std::chrono::milliseconds(1);
  static constexpr Wait longest_later = std::chrono::milliseconds(4);

  // A real machine's first second was seen to take some 600 requests.
  static constexpr std::int64_t patience_most = 1024;
  static constexpr Wait patience_back = std::chrono::milliseconds(2);

  // When a machine was resumed last, and when a page was asked for last; not later than now.
  struct Urgent {
    TimePoint started;
    TimePoint asked;
  };

  // `answered`: requests of this machine before, on connections that broke.
  explicit BackgroundPace(TimePoint now, std::uint64_t answered = 0) noexcept
      : first_(now), since_(now), refilled_(now), answered_(answered) {}

  // How long the next piece waits; zero: it may go. After waiting, ask again. `answered`: requests of this machine so
  // far.
  Wait wait(TimePoint now, const Urgent& urgent, std::uint64_t answered) noexcept {
    take_patience(now, answered);
    if (patience_ <= 0) return Wait::zero();
    const bool at_first = now - urgent.started < longest_at_first && now - first_ < longest_in_all;
    const TimePoint last = at_first ? std::max(urgent.asked, urgent.started) : urgent.asked;
    const TimePoint quiet = last + (at_first ? quiet_at_first : quiet_later);
    const TimePoint latest =
        at_first ? std::min(urgent.started + longest_at_first, first_ + longest_in_all) : since_ + longest_later;
    return std::max(std::min(quiet, latest) - now, Wait::zero());
  }
  // A piece was sent.
  void sent(TimePoint now) noexcept { since_ = now; }

 private:
  void take_patience(TimePoint now, std::uint64_t answered) noexcept {
    const auto back = (now - refilled_) / patience_back;
    refilled_ += back * patience_back;
    patience_ = std::min(patience_ + static_cast<std::int64_t>(back) - static_cast<std::int64_t>(answered - answered_),
                         patience_most);
    // A debt is forgiven: who has stopped asking is given way to again within two seconds.
    patience_ = std::max(patience_, std::int64_t{0});
    answered_ = answered;
  }

  TimePoint first_;
  TimePoint since_;
  TimePoint refilled_;
  std::uint64_t answered_;
  std::int64_t patience_ = patience_most;
};

}  // namespace migrationd::postcopy
