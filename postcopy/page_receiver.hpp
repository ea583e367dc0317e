// SPDX-License-Identifier: Apache-2.0
//
// PageReceiver: the reading threads of one connection after the switch: `listen` on the main channel, `preempt` on the
// second one where there is one.
//
// The connection has given everything when the main channel's EOF came and, with a preempt channel, either nothing that
// was asked for is outstanding or that channel's end mark came: urgent pages may arrive behind the main EOF, and who
// waits for one must not be told that it is zero (docs/spec/postcopy.md section 10.3).
//
// A source that writes an end mark should not find the channel closed: it could take the link for broken, and nobody is
// left to recover it with. So the mark is waited for as long as it may take where one is due, and for a moment where
// that is not known.
//
// The first thing that goes wrong on either channel ends both, and is what wait() returns.
//
// Thread: constructed, waited for and destroyed by the mover. The channels may be shut down by anybody.
#pragma once

#include "base/result.hpp"
#include "postcopy/page_intake.hpp"

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace migrationd::postcopy {

class PageReceiver {
 public:
  // Behind the main channel's end: for a mark that may come (of a source like ours), and for one that is due, on a busy
  // machine.
  static constexpr std::chrono::milliseconds short_mark_wait{100};
  static constexpr std::chrono::milliseconds long_mark_wait{5000};

  struct Parts {
    transports::BufferedReader& main;
    transports::BufferedReader* preempt;  // null: there is none
    DestinationPages& pages;
    const std::vector<BlockShape>& placed;
    PagePlacer& placer;
    ReturnChannel& return_channel;
    IntakeCounters& counters;
    std::uint32_t ram_section_id;
    std::chrono::milliseconds mark_wait = short_mark_wait;
  };
  // All of the parts outlive it.
  static Result<std::unique_ptr<PageReceiver>> start(const Parts& parts);
  ~PageReceiver();

  // Returns when the connection has given everything, or is broken. No thread is left then.
  Result<void> wait();

 private:
  explicit PageReceiver(const Parts& parts);
  void listen();
  void listen_preempt();
  // The verdict on what is known, if there is one. Under the lock.
  std::optional<Result<void>> verdict() const;
  void end_threads() noexcept;

  Parts parts_;
  PageIntake main_;
  std::optional<PageIntake> preempt_;

  // How each thread ended; see the top. A mutex, because the mover waits for either.
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Result<void>> main_end_;
  std::chrono::steady_clock::time_point main_ended_at_;
  std::optional<Result<bool>> preempt_end_;

  std::thread listen_thread_;
  std::thread preempt_thread_;
};

}  // namespace migrationd::postcopy
