// SPDX-License-Identifier: Apache-2.0
#include "base/gate.hpp"

#include <poll.h>

namespace migrationd {

Result<std::unique_ptr<Gate>> Gate::make() {
  MD_TRY(auto event, StopSource::make());
  return std::unique_ptr<Gate>(new Gate(std::move(event)));
}

Result<void> Gate::wait(const StopSource& stop) const {
  while (!is_open()) {
    if (stop.requested()) return cancelled_error();
    pollfd fds[] = {{event_.fd(), POLLIN, 0}, {stop.fd(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) return Error::from_errno("wait for a gate");
  }
  return {};
}

}  // namespace migrationd
