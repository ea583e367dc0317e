// SPDX-License-Identifier: Apache-2.0
//
// RecoveryControl: what control says to a destination that may go into postcopy: break it, mend it, or cancel it while
// it can still be cancelled.
//
// From the moment the package has been read the machine is ours and nobody else's: the mover commits then
// (LinkControl).
//
// Thread: control and the mover, as the members say.
#pragma once

#include "base/doorbell.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "daemon/migration/link_control.hpp"
#include "transports/listen.hpp"

#include <memory>
#include <mutex>
#include <optional>

namespace migrationd::migration {

class RecoveryControl : public LinkControl {
 public:
  static Result<std::unique_ptr<RecoveryControl>> make();

  // Where the next connection comes in.
  struct Offer {
    transports::IncomingTarget target;
    std::unique_ptr<StopSource> replaced;  // raised when a later offer takes its place
  };

  // --- control -----------------------------------------------------------------------------------------------
  // migrate-recover. Takes the place of an earlier one that nobody connected to.
  Result<void> give_target(transports::IncomingTarget target);

  // --- mover -------------------------------------------------------------------------------------------------
  // Waits for give_target() or the stop. The offer stays known here, so that a later one can replace it, until the next
  // call or forget_offer().
  Result<std::shared_ptr<Offer>> await_offer(const StopSource& stop);
  void forget_offer() noexcept;

 private:
  explicit RecoveryControl(std::unique_ptr<Doorbell> bell) noexcept : bell_(std::move(bell)) {}

  std::unique_ptr<Doorbell> bell_;
  std::mutex mutex_;  // guards the offers, which control makes and the mover takes
  std::shared_ptr<Offer> next_;
  std::shared_ptr<Offer> current_;
};

}  // namespace migrationd::migration
