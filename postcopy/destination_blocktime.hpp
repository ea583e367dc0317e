// SPDX-License-Identifier: Apache-2.0
//
// Blocktime: how long the guest waited for pages (capability postcopy-blocktime). Pure arithmetic on the moments at
// which a fault was read and its page was placed.
//
//   per vCPU    the sum of its waits
//   all         the time during which every vCPU waited
//   latencies   one count per power of two of microseconds: bucket i holds waits of [2^i, 2^(i+1)) us, the first also
//               what was shorter, the last what was longer
//
// A vCPU is a thread that faults, numbered in the order of first faults; threads beyond the guest's vCPUs (helpers)
// count in the latencies only.
//
// Thread: its users share it under one lock. Memory: a row per waiting thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <vector>

namespace migrationd::postcopy {

struct BlocktimeReport {
  std::uint64_t all_ms = 0;
  std::vector<std::uint64_t> vcpu_ms;
  std::vector<std::uint64_t> latencies;  // per bucket
  std::uint64_t faults = 0;
  std::uint64_t latency_sum_us = 0;
};

class Blocktime {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t buckets = 24;  // the last from 8 s on: a paused migration

  explicit Blocktime(std::size_t vcpus) : vcpus_(vcpus) {}

  // `thread` (a kernel thread id) waits for the page. A repeated fault of the same wait changes nothing.
  void fault(std::size_t block, std::uint64_t page, int thread, Clock::time_point now);
  // The page is there: whoever waited for it runs on.
  void placed(std::size_t block, std::uint64_t page, Clock::time_point now);
  BlocktimeReport report() const;

 private:
  struct Wait {
    std::size_t block;
    std::uint64_t page;
    Clock::time_point since;
  };
  bool is_vcpu(int thread);
  void end_wait(int thread, const Wait& wait, Clock::time_point now);

  std::size_t vcpus_;
  std::map<int, std::size_t> numbers_;  // of the vCPUs seen
  std::vector<Clock::duration> sums_;   // by number
  std::map<int, Wait> waits_;           // by thread: each waits for one page at a time
  std::size_t waiting_vcpus_ = 0;
  Clock::time_point all_since_{};
  Clock::duration all_{};
  Clock::duration latency_sum_{};
  std::uint64_t faults_ = 0;
  std::array<std::uint64_t, buckets> latencies_{};
};

}  // namespace migrationd::postcopy
