// SPDX-License-Identifier: Apache-2.0
//
// Counters of one direction of a migration. One thread writes (the mover), any thread reads: every number stands
// alone, so relaxed order is enough, and a plain add instead of a locked one.
#pragma once

#include <atomic>
#include <cstdint>

namespace migrationd::ram {

class Counter {
 public:
  void add(std::uint64_t count) noexcept {
    value_.store(value_.load(std::memory_order_relaxed) + count, std::memory_order_relaxed);
  }
  std::uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

// Bytes are bytes of RAM records on the wire, headers included.
struct SendCounters {
  Counter transferred;
  Counter normal_pages;
  Counter zero_pages;     // zero records sent
  Counter skipped_pages;  // holes left out
};

// Deltas. Rates are those of the last whole pass.
struct XbzrleCounters {
  Counter pages;                         // sent as deltas
  Counter bytes;                         // of the deltas, without headers
  Counter misses;                        // pages that were not in the cache
  Counter overflows;                     // deltas that would have been as long as the page
  std::atomic<double> miss_rate{0};      // misses per page looked for
  std::atomic<double> encoding_rate{0};  // bytes of pages per byte of delta
};

struct ReceiveCounters {
  Counter normal_pages;  // raw, delta and compressed
  Counter zero_pages;
};

}  // namespace migrationd::ram
