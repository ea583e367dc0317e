// SPDX-License-Identifier: Apache-2.0
//
// FaultThread: reads the faults of a guest whose pages are still to come, and asks for each page once.
//
//   fault on a page   never asked for   one request on the return path
//                     asked for         nothing: its placement wakes all who wait
//                     received          it came as zero and is a hole, or was placed a moment ago: zeros are placed
//                                       where nothing is, and whoever sleeps is woken (waking without placing would
//                                       fault for ever, doing nothing would hang)
//
// It goes on while postcopy is paused: who faults then waits, and is remembered. It never waits for the mover, who may
// be the one that waits for the page.
//
// Thread: construct and destroy on the mover; the destructor joins.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "postcopy/destination_pages.hpp"
#include "postcopy/guest_memory.hpp"
#include "postcopy/return_channel.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>

namespace migrationd::postcopy {

class FaultThread {
 public:
  // All of them outlive it.
  static Result<std::unique_ptr<FaultThread>> start(GuestMemory& memory, DestinationPages& pages,
                                                    ReturnChannel& return_channel);
  ~FaultThread();

  std::uint64_t faults() const noexcept { return faults_.load(std::memory_order_relaxed); }

 private:
  FaultThread(GuestMemory& memory, DestinationPages& pages, ReturnChannel& return_channel,
              std::unique_ptr<StopSource> stop) noexcept
      : memory_(memory), pages_(pages), return_channel_(return_channel), stop_(std::move(stop)) {}
  void run();
  bool read_faults();
  void serve(std::uint64_t address, int thread);

  GuestMemory& memory_;
  DestinationPages& pages_;
  ReturnChannel& return_channel_;
  std::unique_ptr<StopSource> stop_;  // its own: it outlives every connection
  std::atomic<std::uint64_t> faults_{0};
  std::thread thread_;
};

}  // namespace migrationd::postcopy
