// SPDX-License-Identifier: Apache-2.0
//
// The one stop of a migration.
//
// A migration is ended from outside by raising its StopSource. Every place where one of its threads blocks (a
// channel, a mailbox, a timed wait) polls the stop's descriptor beside its own, because shutdown(2) does
// nothing for pipes and files (docs/architecture.md, "Stop"). Once raised it stays raised.
//
// Thread: request() and the queries may be called from any thread. The source outlives its tokens.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <atomic>
#include <chrono>
#include <memory>

namespace migrationd {

class StopSource {
 public:
  // Fails only when the process is out of descriptors.
  static Result<std::unique_ptr<StopSource>> make();

  void request() noexcept;
  bool requested() const noexcept { return requested_.load(std::memory_order_acquire); }
  // Readable from the moment of request() on; for poll(2).
  int fd() const noexcept { return event_.get(); }
  // Sleeps; true if it slept the whole time, false if the stop was raised before or meanwhile.
  bool sleep_for(std::chrono::nanoseconds duration) const noexcept;

 private:
  explicit StopSource(UniqueFd event) noexcept : event_(std::move(event)) {}

  UniqueFd event_;
  std::atomic<bool> requested_{false};
};

}  // namespace migrationd
