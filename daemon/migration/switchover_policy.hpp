// SPDX-License-Identifier: Apache-2.0
//
// When to stop iterating, and how hard to brake the guest: pure arithmetic over measurements.
//
// The mover feeds one measurement per dirty-bitmap synchronisation and one sample of sent bytes per window; the
// policy answers. Nothing here knows a clock, a channel or a machine, so every rule is tested as a table.
//
// Rules (qmp.md 10.2, 11):
//   * bandwidth is that of the last window of at least 100 ms, unless avail-switchover-bandwidth names one;
//   * expected downtime = bytes still dirty / bandwidth; before the first window it is the limit itself;
//   * switch over when the expected downtime is within downtime-limit (and, with switchover-ack, the destination has
//     said that it is ready: the caller's business);
//   * auto-converge: when in two synchronisations running the guest dirtied more than throttle-trigger-threshold
//     percent of what was sent in the same time, throttle by cpu-throttle-initial, then more by
//     cpu-throttle-increment each time, up to max-cpu-throttle.
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

  bool measured() const noexcept { return measured_; }
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

// May the machine be stopped now? An empty rest may always.
bool may_switch_over(std::uint64_t remaining, const BandwidthMeter& meter, const SwitchoverLimits& limits) noexcept;

struct ThrottleSettings {
  unsigned trigger_threshold = 50;  // percent
  unsigned initial = 20;
  unsigned increment = 10;
  unsigned maximum = 99;
  bool tailslow = false;
};

class AutoConverge {
 public:
  // At a synchronisation: bytes dirtied and bytes sent since the one before. Returns the throttle to set when it
  // changes, in percent.
  std::optional<unsigned> on_sync(std::uint64_t dirtied, std::uint64_t sent, const ThrottleSettings& settings) noexcept;
  unsigned percent() const noexcept { return percent_; }

 private:
  unsigned percent_ = 0;
  unsigned high_in_a_row_ = 0;
};

}  // namespace migrationd::migration
