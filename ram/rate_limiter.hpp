// SPDX-License-Identifier: Apache-2.0
//
// RateLimiter: a token bucket as pure arithmetic. It knows no clock and never sleeps: the caller says what it sent and
// what time it is, and is told how long to wait.
//
// The limit is an atomic that control may change at any time (max-bandwidth, bytes/s; 0: unlimited); a wait is cut
// into pieces of at most `longest_wait`, so that a change acts soon. The bucket holds `burst` of sending time: short,
// so that neither the destination nor a stop stands behind a long burst.
// Thread: the mover.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>

namespace migrationd::ram {

class RateLimiter {
 public:
  using TimePoint = std::chrono::steady_clock::time_point;
  static constexpr std::chrono::nanoseconds burst = std::chrono::milliseconds(10);
  static constexpr std::chrono::nanoseconds longest_wait = std::chrono::milliseconds(20);

  // `bytes_per_second` outlives it.
  explicit RateLimiter(const std::atomic<std::uint64_t>& bytes_per_second) noexcept : limit_(&bytes_per_second) {}

  void sent(std::uint64_t bytes) noexcept { tokens_ -= static_cast<double>(bytes); }

  // How long to wait before sending more; zero: go on. After waiting, ask again.
  std::chrono::nanoseconds wait(TimePoint now) noexcept {
    const auto limit = static_cast<double>(limit_->load(std::memory_order_relaxed));
    const double elapsed = last_ ? std::chrono::duration<double>(now - *last_).count() : 0.0;
    last_ = now;
    if (limit == 0.0) {
      tokens_ = 0.0;
      return std::chrono::nanoseconds::zero();
    }
    tokens_ = std::min(tokens_ + elapsed * limit, limit * std::chrono::duration<double>(burst).count());
    if (tokens_ >= 0.0) return std::chrono::nanoseconds::zero();
    const auto debt = std::chrono::duration<double>(std::min(-tokens_ / limit, 1.0));
    return std::clamp(std::chrono::duration_cast<std::chrono::nanoseconds>(debt), std::chrono::nanoseconds(1),
                      longest_wait);
  }

  // What may be sent between two questions: a millisecond's worth, within reason.
  std::uint64_t quantum() const noexcept {
    const std::uint64_t limit = limit_->load(std::memory_order_relaxed);
    if (limit == 0) return unlimited_quantum;
    return std::clamp<std::uint64_t>(limit / 1000, smallest_quantum, unlimited_quantum);
  }

 private:
  static constexpr std::uint64_t smallest_quantum = std::uint64_t{16} << 10;
  static constexpr std::uint64_t unlimited_quantum = std::uint64_t{1} << 20;

  const std::atomic<std::uint64_t>* limit_;
  std::optional<TimePoint> last_;
  double tokens_ = 0.0;  // bytes; negative: sent ahead of time
};

}  // namespace migrationd::ram
