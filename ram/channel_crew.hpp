// SPDX-License-Identifier: Apache-2.0
//
// What the two crews of channel threads, MultifdSender's and MultifdReceiver's, have in common: the first failure of a
// channel ends the migration and is remembered, and a number of the crew is the sum of its workers' counters.
//
// Thread: take() by any worker, the rest by any thread.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "ram/counters.hpp"

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace migrationd::ram {

class ChannelFailure {
 public:
  // `stop` outlives it.
  explicit ChannelFailure(StopSource& stop) noexcept : stop_(stop) {}

  // The first is kept, with the channel's number, and raises the stop: the mover fails at once, wherever it is.
  // A channel that was told to end has not failed.
  void take(std::size_t channel, Error error);
  // Why the stop was raised, if a channel did it.
  std::optional<Error> get() const;

 private:
  StopSource& stop_;
  mutable std::mutex mutex_;  // several threads may fail, the mover asks
  std::optional<Error> first_;
};

template <class Worker>
std::uint64_t total_of(const std::vector<std::unique_ptr<Worker>>& workers, Counter Worker::*counter) noexcept {
  std::uint64_t total = 0;
  for (const auto& worker : workers) total += ((*worker).*counter).get();
  return total;
}

}  // namespace migrationd::ram
