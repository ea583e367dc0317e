// SPDX-License-Identifier: Apache-2.0
//
// What a mover tells control while it works, and what control reads of its progress.
//
// MoverEvents: the mover calls, the implementation posts to the event loop in call order; control changes the status,
// emits the QMP events and answers queries from its own copy. The mover never waits for it.
//
// Progress: numbers of the running migration. The mover (and its helpers, each its own counters) write, control reads
// at any time; relaxed atomics, because every number stands alone.
#pragma once

#include "base/result.hpp"
#include "base/thread_roster.hpp"
#include "postcopy/server_counters.hpp"
#include "protocol/qmp/migration_info.hpp"
#include "ram/counters.hpp"
#include "ram/rdma_channel.hpp"

#include <atomic>
#include <chrono>
#include <cstdint>

namespace migrationd::migration {

class RunControl;

class MoverEvents {
 public:
  virtual ~MoverEvents() = default;
  virtual void status(qmp::MigrationStatus status) = 0;
  virtual void pass(std::uint64_t number) = 0;
  // The guest was stopped (runs again): STOP and RESUME.
  virtual void guest_stopped() = 0;
  virtual void guest_resumed() = 0;
  // postcopy-paused, and why.
  virtual void paused(const Error& why) = 0;
};

// Starts a machine that has arrived, if it and this daemon want it to run. That it does not start is said, and is no
// failure of the migration: the machine is here, and `cont` may try again.
void start_arrived(RunControl& run_control, MoverEvents& events);

// What a migration over RDMA cost, from the counts of its connections (ram/rdma_channel.hpp).
struct RdmaProgress {
  std::atomic<bool> used{false};
  std::atomic<std::uint64_t> control_messages{0};  // both directions
  std::atomic<std::uint64_t> control_bytes{0};     // of them: what processors copy, headers included
  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> written_bytes{0};
  std::atomic<std::uint64_t> registrations{0};
  std::atomic<std::uint64_t> registered_bytes{0};
  std::atomic<std::uint64_t> completions{0};
  std::atomic<std::uint64_t> waits{0};
  std::atomic<std::uint64_t> queue_pairs{0};

  void take(const ram::RdmaTotals& totals) noexcept;
};

using Clock = std::chrono::steady_clock;

inline std::uint64_t milliseconds_since(Clock::time_point start) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count());
}

struct Progress {
  ThreadRoster threads;
  postcopy::ServerCounters postcopy;
  ram::XbzrleCounters xbzrle;
  RdmaProgress rdma;
  std::atomic<std::uint64_t> ram_total{0};         // bytes
  std::atomic<std::uint64_t> transferred{0};       // bytes on the wire, all channels
  std::atomic<std::uint64_t> multifd_bytes{0};     // those of them on multifd channels
  std::atomic<std::uint64_t> missed_zero_copy{0};  // barriers of a channel
  std::atomic<std::uint64_t> remaining{0};         // bytes still dirty
  std::atomic<std::uint64_t> normal_pages{0};      // pages
  std::atomic<std::uint64_t> zero_pages{0};        // pages
  std::atomic<std::uint64_t> precopy_bytes{0};     // bytes of RAM sent while the guest ran
  std::atomic<std::uint64_t> downtime_bytes{0};
  std::atomic<std::uint64_t> passes{0};            // dirty-bitmap synchronisations
  std::atomic<std::uint64_t> dirty_pages_rate{0};  // pages/s
  std::atomic<double> bytes_per_second{0};         // last window
  std::atomic<double> pages_per_second{0};
  std::atomic<std::int64_t> setup_ms{0};
  std::atomic<std::int64_t> expected_downtime_ms{-1};  // -1: not measured, show the limit
  std::atomic<std::int64_t> downtime_us{0};            // stop to outcome
  std::atomic<std::int64_t> total_ms{0};               // set at the end
  std::atomic<unsigned> throttle_percent{0};
};

}  // namespace migrationd::migration
