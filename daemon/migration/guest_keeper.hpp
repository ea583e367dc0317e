// SPDX-License-Identifier: Apache-2.0
//
// GuestKeeper: what the door of attached guests (daemon/guest_door.hpp) needs of the daemon's one machine slot.
//
// Thread: control.
#pragma once

#include "base/result.hpp"
#include "daemon/machine/machine.hpp"
#include "guest/protocol.hpp"

#include <functional>
#include <memory>

namespace migrationd::migration {

class GuestKeeper {
 public:
  virtual ~GuestKeeper() = default;
  // A guest is ready: its machine is the daemon's from now on. `state` says whether it runs, rests, or waits for a
  // stream.
  virtual Result<void> guest_ready(std::unique_ptr<Machine> machine, guest::GuestState state) = 0;
  // The guest is gone, or wants to go. `dropped` is called once its machine is no longer used, which takes until the
  // end of a migration that goes on, or fails for want of the guest.
  virtual void guest_gone(const Error& why, std::function<void()> dropped) = 0;
  // Refuses while a migration runs, or the machine is examined.
  virtual Result<void> check_guest_idle() const = 0;
};

}  // namespace migrationd::migration
