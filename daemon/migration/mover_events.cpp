// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/mover_events.hpp"

#include "base/log.hpp"
#include "daemon/migration/run_control.hpp"

namespace migrationd::migration {

void RdmaProgress::take(const ram::RdmaTotals& totals) noexcept {
  control_messages = totals.control_messages;
  control_bytes = totals.control_bytes;
  writes = totals.writes;
  written_bytes = totals.written_bytes;
  registrations = totals.registrations;
  registered_bytes = totals.registered_bytes;
  completions = totals.completions;
  waits = totals.waits;
  queue_pairs = totals.queue_pairs;
  used = true;
}

void start_arrived(RunControl& run_control, MoverEvents& events) {
  auto resumed = run_control.start_if_wanted();
  if (!resumed) {
    log::error("the guest could not be started: {}", resumed.error().text());
  } else if (*resumed) {
    events.guest_resumed();
  }
}

}  // namespace migrationd::migration
