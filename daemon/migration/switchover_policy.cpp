// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/switchover_policy.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace migrationd::migration {
namespace {

// An open window this old gives a first, rough bandwidth: a small machine is through before a window closes.
constexpr std::chrono::milliseconds rough_window{10};

double seconds(std::chrono::nanoseconds duration) noexcept { return std::chrono::duration<double>(duration).count(); }

double usable_bandwidth(const BandwidthMeter& meter, const SwitchoverLimits& limits) noexcept {
  if (limits.avail_switchover_bandwidth != 0) return static_cast<double>(limits.avail_switchover_bandwidth);
  return meter.bytes_per_second();
}

}  // namespace

void BandwidthMeter::restart(std::chrono::nanoseconds now, std::uint64_t sent, std::uint64_t pages) noexcept {
  started_ = true;
  window_start_ = now;
  window_sent_ = sent;
  window_pages_ = pages;
}

void BandwidthMeter::sample(std::chrono::nanoseconds now, std::uint64_t sent, std::uint64_t pages) noexcept {
  if (!started_) return restart(now, sent, pages);
  const auto elapsed = now - window_start_;
  if (elapsed < (measured_ ? window : rough_window)) return;
  bytes_per_second_ = static_cast<double>(sent - window_sent_) / seconds(elapsed);
  pages_per_second_ = static_cast<double>(pages - window_pages_) / seconds(elapsed);
  if (elapsed < window) return;
  measured_ = true;
  restart(now, sent, pages);
}

std::optional<std::chrono::milliseconds> expected_downtime(std::uint64_t remaining, const BandwidthMeter& meter,
                                                           const SwitchoverLimits& limits) noexcept {
  const double bandwidth = usable_bandwidth(meter, limits);
  if (bandwidth <= 0) return std::nullopt;
  const double milliseconds = static_cast<double>(remaining) / bandwidth * 1000;
  // A stalled link must not overflow: a year is as good as any larger number.
  return std::chrono::milliseconds(static_cast<std::int64_t>(std::min(std::ceil(milliseconds), 3.2e10)));
}

bool within_limit(std::uint64_t remaining, const BandwidthMeter& meter, const SwitchoverLimits& limits) noexcept {
  if (remaining == 0) return true;
  const auto expected = expected_downtime(remaining, meter, limits);
  return expected && *expected <= limits.downtime_limit;
}

bool SwitchoverPolicy::may_switch_over(std::uint64_t remaining, bool all_sent, const BandwidthMeter& meter,
                                       const SwitchoverLimits& limits) noexcept {
  if (remaining == 0) return true;
  if (!all_sent) return false;
  const auto before = std::exchange(previous_, remaining);
  if (!within_limit(remaining, meter, limits)) return false;
  if (*expected_downtime(remaining, meter, limits) <= short_enough) return true;
  // In doubles: machines are large.
  return before && static_cast<double>(remaining) * 100 >= static_cast<double>(*before) * worthwhile_percent;
}

std::optional<unsigned> AutoConverge::on_sync(std::uint64_t dirtied, std::uint64_t sent,
                                              const ThrottleSettings& settings) noexcept {
  // In doubles: the products of two u64 overflow.
  const bool high = static_cast<double>(dirtied) * 100 > static_cast<double>(sent) * settings.trigger_threshold;
  if (!high) {
    high_in_a_row_ = 0;
    return std::nullopt;
  }
  if (++high_in_a_row_ < 2) return std::nullopt;
  high_in_a_row_ = 0;

  unsigned next = settings.initial;
  if (percent_ != 0) {
    unsigned step = settings.increment;
    if (settings.tailslow && dirtied > 0) {
      // Near the end a full step would stop the guest: take what brings the dirty rate down to the sent rate.
      const double cpu_now = 100.0 - percent_;
      const double cpu_ideal = cpu_now * std::min(1.0, static_cast<double>(sent) / static_cast<double>(dirtied));
      step = std::min(step, static_cast<unsigned>(std::max(1.0, cpu_now - cpu_ideal)));
    }
    next = percent_ + step;
  }
  next = std::min(next, settings.maximum);
  if (next == percent_) return std::nullopt;
  percent_ = next;
  return next;
}

}  // namespace migrationd::migration
