// SPDX-License-Identifier: Apache-2.0
#include "postcopy/destination_blocktime.hpp"

#include <algorithm>
#include <bit>

namespace migrationd::postcopy {
namespace {

template <class Unit>
std::uint64_t in(Blocktime::Clock::duration time) {
  return static_cast<std::uint64_t>(std::chrono::duration_cast<Unit>(time).count());
}

}  // namespace

bool Blocktime::is_vcpu(int thread) {
  if (numbers_.contains(thread)) return true;
  if (numbers_.size() >= vcpus_) return false;
  numbers_.emplace(thread, numbers_.size());
  sums_.emplace_back();
  return true;
}

void Blocktime::fault(std::size_t block, std::uint64_t page, int thread, Clock::time_point now) {
  if (const auto found = waits_.find(thread); found != waits_.end()) {
    if (found->second.block == block && found->second.page == page) return;
    // It runs again, so its page was there; the word of that has not come yet.
    const Wait before = found->second;
    waits_.erase(found);
    end_wait(thread, before, now);
  }
  waits_.emplace(thread, Wait{block, page, now});
  if (is_vcpu(thread) && ++waiting_vcpus_ == vcpus_) all_since_ = now;
}

void Blocktime::end_wait(int thread, const Wait& wait, Clock::time_point now) {
  const auto time = now - wait.since;
  ++faults_;
  latency_sum_ += time;
  const std::uint64_t micros = in<std::chrono::microseconds>(time);
  const std::size_t bucket = micros == 0 ? 0 : static_cast<std::size_t>(std::bit_width(micros)) - 1;
  ++latencies_[std::min(bucket, buckets - 1)];
  if (!is_vcpu(thread)) return;
  sums_[numbers_[thread]] += time;
  if (waiting_vcpus_-- == vcpus_) all_ += now - all_since_;
}

void Blocktime::placed(std::size_t block, std::uint64_t page, Clock::time_point now) {
  for (auto it = waits_.begin(); it != waits_.end();) {
    if (it->second.block != block || it->second.page != page) {
      ++it;
      continue;
    }
    end_wait(it->first, it->second, now);
    it = waits_.erase(it);
  }
}

BlocktimeReport Blocktime::report() const {
  BlocktimeReport out;
  out.all_ms = in<std::chrono::milliseconds>(all_);
  out.vcpu_ms.assign(vcpus_, 0);
  for (std::size_t i = 0; i < sums_.size(); ++i) out.vcpu_ms[i] = in<std::chrono::milliseconds>(sums_[i]);
  out.latencies.assign(latencies_.begin(), latencies_.end());
  out.faults = faults_;
  out.latency_sum_us = in<std::chrono::microseconds>(latency_sum_);
  return out;
}

}  // namespace migrationd::postcopy
