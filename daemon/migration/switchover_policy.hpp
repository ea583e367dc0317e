// SPDX-License-Identifier: Apache-2.0
//
// When to stop iterating, and how hard to brake the guest: pure arithmetic over measurements.
//
// The mover feeds one measurement per dirty-bitmap synchronisation, the bytes sent after each PART, and about once a
// second what auto-converge judges; the policy answers. Nothing here knows a clock, a channel or a machine, so every
// rule is tested as a table.
//
// Rules (qmp.md 10.2, 11):
//   * bandwidth is that of the last window of at least 100 ms, unless avail-switchover-bandwidth names one; before
//     the first window closed, that of the open one when it is at least 10 ms old;
//   * expected downtime = bytes still dirty / bandwidth;
//   * switch over only within downtime-limit (and, with switchover-ack, when the destination has said that it is
//     ready: the caller's business), but not as soon as that is so: a guest that writes slower than the link sends is
//     worth another pass, which shortens its downtime further. So it goes on until a pass no longer makes the rest
//     much smaller, or the rest takes a millisecond;
//   * auto-converge: when in two judgements running (PrecopySender makes one a second at most) the guest dirtied more
//     than throttle-trigger-threshold percent of what was sent in the same time, throttle by cpu-throttle-initial, then
//     more by cpu-throttle-increment each time, up to max-cpu-throttle.
//
// Thread: the mover's. Units: bytes, nanoseconds, percent.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace migrationd::migration {

// The limits that QMP may change while a migration runs, read once per decision.
struct SwitchoverLimits {
  std::chrono::milliseconds downtime_limit{300};
  std::uint64_t avail_switchover_bandwidth = 0;  // bytes/s; 0: measure
};

class BandwidthMeter {
 public:
  static constexpr std::chrono::milliseconds window{100};

  // `sent`: bytes on the wire since the start. Closes a window when at least `window` has passed.
  void sample(std::chrono::nanoseconds now, std::uint64_t sent, std::uint64_t pages) noexcept;
  // Starts the clock anew without counting what was sent meanwhile.
  void restart(std::chrono::nanoseconds now, std::uint64_t sent, std::uint64_t pages) noexcept;

  // A window has closed: pages_per_second() too is worth showing.
  bool measured() const noexcept { return measured_; }
  // 0 until something was measured.
  double bytes_per_second() const noexcept { return bytes_per_second_; }
  double pages_per_second() const noexcept { return pages_per_second_; }

 private:
  bool started_ = false;
  bool measured_ = false;
  std::chrono::nanoseconds window_start_{0};
  std::uint64_t window_sent_ = 0;
  std::uint64_t window_pages_ = 0;
  double bytes_per_second_ = 0;
  double pages_per_second_ = 0;
};

// The time `remaining` bytes will take; nothing before the first measurement.
std::optional<std::chrono::milliseconds> expected_downtime(std::uint64_t remaining, const BandwidthMeter& meter,
                                                           const SwitchoverLimits& limits) noexcept;

// Is the expected downtime within the limit? An empty rest always is.
bool within_limit(std::uint64_t remaining, const BandwidthMeter& meter, const SwitchoverLimits& limits) noexcept;

class SwitchoverPolicy {
 public:
  // A pass must leave less than this share of what the pass before it left, or another one is not worth it.
  static constexpr unsigned worthwhile_percent = 70;
  static constexpr std::chrono::milliseconds short_enough{1};

  // After a synchronisation that left `remaining` bytes: may the machine be stopped now? `all_sent`: every page was
  // sent at least once.
  bool may_switch_over(std::uint64_t remaining, bool all_sent, const BandwidthMeter& meter,
                       const SwitchoverLimits& limits) noexcept;

 private:
  std::optional<std::uint64_t> previous_;
};

struct ThrottleSettings {
  unsigned trigger_threshold = 50;  // percent
  unsigned initial = 20;
  unsigned increment = 10;
  unsigned maximum = 99;
  bool tailslow = false;
};

class AutoConverge {
 public:
  // At a judgement: bytes dirtied and bytes sent since the one before. Returns the throttle to set when it
  // changes, in percent.
  std::optional<unsigned> on_sync(std::uint64_t dirtied, std::uint64_t sent, const ThrottleSettings& settings) noexcept;
  unsigned percent() const noexcept { return percent_; }

 private:
  unsigned percent_ = 0;
  unsigned high_in_a_row_ = 0;
};

}  // namespace migrationd::migration
