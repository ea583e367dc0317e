// SPDX-License-Identifier: Apache-2.0
//
// What a page server counts. Written by its two threads, read by any; every number stands alone.
#pragma once

#include <atomic>
#include <cstdint>

namespace migrationd::postcopy {

// Bytes are those of page records and their sections, on all connections.
struct ServerCounters {
  std::atomic<std::uint64_t> requests{0};      // messages
  std::atomic<std::uint64_t> answered{0};      // requests that a page was sent for
  std::atomic<std::uint64_t> normal_pages{0};  // target pages
  std::atomic<std::uint64_t> zero_pages{0};    // zero records
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<std::uint64_t> answer_ns{0};   // from the request's reading to its page in the kernel, over `answered`
  std::atomic<std::uint64_t> longest_ns{0};  // the longest of them
  std::atomic<std::uint64_t> due_bytes{0};   // still to be streamed
};

}  // namespace migrationd::postcopy
