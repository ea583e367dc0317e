// SPDX-License-Identifier: Apache-2.0
//
// LiveLimits: the only settings that may change while a migration runs. Control writes, the mover reads; each is
// independent of the others, so relaxed atomics are enough.
#pragma once

#include <atomic>
#include <cstdint>

namespace migrationd::migration {

struct LiveLimits {
  std::atomic<std::uint64_t> max_bandwidth{134217728};       // bytes/s; 0: unlimited
  std::atomic<std::uint64_t> max_postcopy_bandwidth{0};      // bytes/s of background pages; 0: unlimited
  std::atomic<bool> postcopy_background{true};               // false: pages go on request only
  std::atomic<std::uint64_t> avail_switchover_bandwidth{0};  // bytes/s; 0: measure
  std::atomic<std::uint64_t> xbzrle_cache_size{67108864};    // bytes, a power of two; taken at the next pass
  std::atomic<std::uint64_t> downtime_limit_ms{300};
  std::atomic<unsigned> throttle_trigger_threshold{50};  // percent
  std::atomic<unsigned> cpu_throttle_initial{20};
  std::atomic<unsigned> cpu_throttle_increment{10};
  std::atomic<unsigned> max_cpu_throttle{99};
  std::atomic<bool> cpu_throttle_tailslow{false};
};

}  // namespace migrationd::migration
