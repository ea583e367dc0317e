// SPDX-License-Identifier: Apache-2.0
//
// DirtyRate: calc-dirty-rate and query-dirty-rate (qmp.md 9.9).
//
// The machine is asked through MigrationService::measure_dirty_rate, which counts pages really written; QEMU's modes
// differ only in how they find that out, so page-sampling and dirty-bitmap are served by it (dirty-ring is KVM's), and
// sample-pages is checked and shown but has no effect. As in QEMU, times are whole seconds unless calc-time-unit says
// milliseconds.
//
// Thread: control.
#pragma once

#include "daemon/migration/service.hpp"
#include "protocol/qmp/types.hpp"

#include <memory>
#include <optional>
#include <string>

namespace migrationd::control {

class DirtyRate {
 public:
  explicit DirtyRate(migration::MigrationService& service) : service_(service) {}

  qmp::QmpResult<qmp::Empty> start(const qmp::CalcDirtyRateArgs& args);
  qmp::DirtyRateInfo query(const qmp::QueryDirtyRateArgs& args) const;

 private:
  struct Measurement {
    qmp::DirtyRateInfo info;  // calc_time in milliseconds
    std::optional<std::string> error;
  };

  static void finish(Measurement& measurement, const Result<std::uint64_t>& pages_per_second);

  migration::MigrationService& service_;
  // Shared with the callback of a measurement, which may outlive this object.
  std::shared_ptr<Measurement> last_ = std::make_shared<Measurement>();
};

}  // namespace migrationd::control
