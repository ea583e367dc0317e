// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/mover_events.hpp"

#include "base/log.hpp"
#include "daemon/migration/run_control.hpp"

namespace migrationd::migration {

void start_arrived(RunControl& run_control, MoverEvents& events) {
  auto resumed = run_control.start_if_wanted();
  if (!resumed) {
    log::error("the guest could not be started: {}", resumed.error().text());
  } else if (*resumed) {
    events.guest_resumed();
  }
}

}  // namespace migrationd::migration
