// SPDX-License-Identifier: Apache-2.0
//
// Pacer: keeps a sink to its rate. It counts what the sink sends and sleeps when the limiter says so; sleeping ends
// with the stop. Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "ram/rate_limiter.hpp"

#include <chrono>
#include <cstdint>

namespace migrationd::ram {

class Pacer {
 public:
  explicit Pacer(const StopSource& stop) noexcept : stop_(stop) {}

  // Null: no limit.
  void limit_by(RateLimiter* limiter) noexcept { limiter_ = limiter; }
  void sent(std::uint64_t bytes) noexcept { unpaced_ += bytes; }

  // Waits until the limiter lets more go. `before_sleep` is called once before it sleeps: what was paid for goes out.
  template <class BeforeSleep>
  Result<void> pace(BeforeSleep before_sleep) {
    if (limiter_ == nullptr) {
      unpaced_ = 0;
      return {};
    }
    if (unpaced_ < limiter_->quantum()) return {};
    limiter_->sent(unpaced_);
    unpaced_ = 0;
    auto wait = limiter_->wait(std::chrono::steady_clock::now());
    if (wait == std::chrono::nanoseconds::zero()) return {};
    MD_CHECK(before_sleep());
    while (wait != std::chrono::nanoseconds::zero()) {
      if (!stop_.sleep_for(wait)) return cancelled_error();
      wait = limiter_->wait(std::chrono::steady_clock::now());
    }
    return {};
  }

 private:
  const StopSource& stop_;
  RateLimiter* limiter_ = nullptr;
  std::uint64_t unpaced_ = 0;  // bytes since the limiter was last asked
};

}  // namespace migrationd::ram
