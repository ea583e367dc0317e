// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/dirty_rate.hpp"

#include "base/log.hpp"

#include <fmt/format.h>

#include <chrono>

namespace migrationd::control {
namespace {

using namespace std::chrono_literals;

constexpr std::int64_t shortest_ms = 50;
constexpr std::int64_t longest_ms = 60000;
constexpr std::int64_t fewest_samples = 128;
constexpr std::int64_t most_samples = 16384;
constexpr std::int64_t default_samples = 512;
constexpr std::int64_t ms_per_second = 1000;
constexpr std::uint64_t page_bytes = 4096;  // dirty logs count pages of the wire
constexpr std::uint64_t bytes_per_mib = std::uint64_t{1} << 20;

std::int64_t seconds_since_boot() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

qmp::QmpResult<qmp::Empty> DirtyRate::start(const qmp::CalcDirtyRateArgs& args) {
  if (last_->info.status == qmp::DirtyRateStatus::measuring) {
    return qmp::QmpError("the dirty rate is already being measured.");
  }
  const bool seconds = args.calc_time_unit.value_or(qmp::TimeUnit::second) == qmp::TimeUnit::second;
  // Compared before it is multiplied: the number is the client's.
  const bool in_range = seconds ? args.calc_time >= 1 && args.calc_time <= longest_ms / ms_per_second
                                : args.calc_time >= shortest_ms && args.calc_time <= longest_ms;
  if (!in_range) {
    return qmp::QmpError(fmt::format("Calculation time is out of range [{}ms, {}ms].", shortest_ms, longest_ms));
  }
  const auto mode = args.mode.value_or(qmp::DirtyRateMeasureMode::page_sampling);
  if (args.sample_pages && mode != qmp::DirtyRateMeasureMode::page_sampling) {
    return qmp::QmpError("sample-pages is used only in page-sampling mode");
  }
  const auto samples = args.sample_pages.value_or(default_samples);
  if (samples < fewest_samples || samples > most_samples) {
    return qmp::QmpError(fmt::format("sample-pages is out of range[{}, {}].", fewest_samples, most_samples));
  }
  // The ring is KVM's, and nothing here runs under KVM.
  if (mode == qmp::DirtyRateMeasureMode::dirty_ring) {
    return qmp::QmpError("mode dirty-ring is not enabled, use other method instead.");
  }

  auto measurement = std::make_shared<Measurement>();
  measurement->info.status = qmp::DirtyRateStatus::measuring;
  measurement->info.start_time = seconds_since_boot();
  measurement->info.calc_time = seconds ? args.calc_time * ms_per_second : args.calc_time;
  measurement->info.sample_pages = static_cast<std::uint64_t>(samples);
  measurement->info.mode = mode;
  last_ = measurement;

  service_.measure_dirty_rate(
      std::chrono::milliseconds(measurement->info.calc_time),
      [measurement](const Result<std::uint64_t>& pages_per_second) { finish(*measurement, pages_per_second); });
  // A machine that cannot be measured says so at once.
  if (measurement->error) return qmp::QmpError(*measurement->error);
  return qmp::Empty{};
}

void DirtyRate::finish(Measurement& measurement, const Result<std::uint64_t>& pages_per_second) {
  if (!pages_per_second) {
    measurement.info.status = qmp::DirtyRateStatus::unstarted;
    measurement.error = pages_per_second.error().text();
    log::warning(fmt::format("calc-dirty-rate: {}", *measurement.error));
    return;
  }
  measurement.info.status = qmp::DirtyRateStatus::measured;
  measurement.info.dirty_rate = static_cast<std::int64_t>(*pages_per_second * page_bytes / bytes_per_mib);
}

qmp::DirtyRateInfo DirtyRate::query(const qmp::QueryDirtyRateArgs& args) const {
  auto info = last_->info;
  info.calc_time_unit = args.calc_time_unit.value_or(qmp::TimeUnit::second);
  if (info.calc_time_unit == qmp::TimeUnit::second) info.calc_time /= ms_per_second;
  return info;
}

}  // namespace migrationd::control
