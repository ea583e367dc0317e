// SPDX-License-Identifier: Apache-2.0
//
// GuestThreads: what runs in the synthetic guest.
//
// Writers write pages of the working set in the order of synthetic_pattern.hpp, at a set number of bytes per second,
// through the guest view. A writer stops only between two pages, so at any pause every page is whole and the number
// of its writes says what every page of its slice holds. One more thread ticks every 10 ms and, when asked, appends a
// line to a log: "INSTANCE TICK NANOSECONDS" (CLOCK_MONOTONIC), the first one at once when the guest starts. Lines of
// two instances that overlap in time would prove two running copies.
//
// They stand for the guest's processors, not for migrationd: start and pause are a handshake under one mutex, taken
// never while pages are written but when a writer sleeps; a pause is answered in well under a millisecond. throttle()
// lowers the rate and adds sleep in proportion to the time spent writing, so it also slows a guest that is as fast as
// the memory.
//
// Thread: start, pause, set_throttle from one thread at a time; the counters are read and set while paused.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "daemon/machine/synthetic_pattern.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace migrationd::synthetic {

// A thread comes to rest within a millisecond, or tens of them where processors are short.
inline constexpr std::chrono::seconds longest_pause{1};

class GuestThreads {
 public:
  struct Counters {
    std::vector<std::uint64_t> writes;  // pages, per writer
    std::uint64_t ticks = 0;
    std::uint64_t running_time = 0;  // nanoseconds
  };

  // `view`: the guest view of the block, longer than any place of `shape`; outlives this. `dirty_rate` in bytes per
  // second. `log_fd` is -1 or a file opened for appending. Begins paused.
  GuestThreads(const GuestShape& shape, std::byte* view, std::uint64_t dirty_rate, Counters counters,
               std::string instance, int log_fd);
  ~GuestThreads();
  GuestThreads(const GuestThreads&) = delete;
  GuestThreads& operator=(const GuestThreads&) = delete;

  void start();
  // True when every thread rests; no page is half-written then. False when one does not within longest_pause, because
  // it waits for a page that a postcopy has not brought yet: then all run on.
  bool pause();
  void set_throttle(unsigned percent) noexcept { throttle_.store(percent, std::memory_order_relaxed); }
  Counters counters() const;
  // A page of the block that a writer found to be something else than it had left there, before it wrote it again: the
  // only proof of what the guest *read*, for the page looks right afterwards. The first, while these threads live.
  std::optional<std::uint64_t> wrong_page() const noexcept {
    const std::uint64_t page = wrong_page_.load(std::memory_order_relaxed);
    return page == no_page ? std::nullopt : std::optional(page);
  }

 private:
  enum class Wish : std::uint8_t { rest, run, end };

  struct Writer {
    WriteOrder order;
    std::uint64_t first = 0;  // logical page its slice begins with
    std::uint64_t writes = 0;
  };

  template <class Run>
  void live(Run run);
  void write_pages(Writer& writer);
  void look_at(std::uint64_t logical, std::uint64_t page, std::uint64_t rounds) noexcept;
  void tick();
  void log_tick() const;
  // Sleeps until `time`, or shorter when the guest shall rest.
  void sleep_until(std::chrono::steady_clock::time_point time);
  bool interrupted() const noexcept { return interrupted_.load(std::memory_order_relaxed); }

  const GuestShape shape_;
  const PagePlaces places_;
  std::byte* const view_;
  const std::uint64_t rate_;  // bytes per second and writer
  const std::string instance_;
  const int log_fd_;

  std::vector<Writer> writers_;
  std::uint64_t ticks_;
  std::uint64_t running_time_;
  std::atomic<unsigned> throttle_{0};
  std::atomic<bool> interrupted_{true};
  static constexpr std::uint64_t no_page = ~std::uint64_t{0};
  std::atomic<std::uint64_t> wrong_page_{no_page};

  std::mutex mutex_;  // guards wish_ and resting_; see above
  std::condition_variable changed_;
  Wish wish_ = Wish::rest;
  std::size_t resting_ = 0;
  std::vector<std::thread> threads_;
};

}  // namespace migrationd::synthetic
