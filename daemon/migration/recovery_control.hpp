// SPDX-License-Identifier: Apache-2.0
//
// RecoveryControl: what control says to a destination that may go into postcopy: break it, mend it, or cancel it while
// it can still be cancelled.
//
// From the moment the package has been read the machine is ours and nobody else's: commit() and cancel() exclude each
// other, so that a cancel is either refused or comes before that.
//
// Thread: control and the mover, as the members say. A mutex, because channels are shut down by control while the mover
// replaces them.
#pragma once

#include "base/doorbell.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "transports/channel.hpp"
#include "transports/listen.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace migrationd::migration {

class RecoveryControl {
 public:
  static Result<std::unique_ptr<RecoveryControl>> make();

  // Where the next connection comes in.
  struct Offer {
    transports::IncomingTarget target;
    std::unique_ptr<StopSource> replaced;  // raised when a later offer takes its place
  };

  // --- control -----------------------------------------------------------------------------------------------
  // May the migration be cancelled? False: the machine is ours already.
  bool cancel() noexcept { return decide(Decision::cancelled); }
  // migrate-pause, yank: the connections are broken. Nothing when there is none.
  void break_connections();
  // migrate-recover. Takes the place of an earlier one that nobody connected to.
  Result<void> give_target(transports::IncomingTarget target);

  // --- mover -------------------------------------------------------------------------------------------------
  // The package is here. False: cancelled.
  bool commit() noexcept { return decide(Decision::committed); }
  // What break_connections() breaks; empty before they are destroyed.
  void watch(std::vector<transports::Channel*> channels);
  // True once: control broke the connections since the last call.
  bool take_broken() noexcept { return broken_.exchange(false); }
  // Waits for give_target() or the stop. The offer stays known here, so that a later one can replace it, until the next
  // call or forget_offer().
  Result<std::shared_ptr<Offer>> await_offer(const StopSource& stop);
  void forget_offer() noexcept;

 private:
  enum class Decision : std::uint8_t { open, committed, cancelled };

  explicit RecoveryControl(std::unique_ptr<Doorbell> bell) noexcept : bell_(std::move(bell)) {}
  bool decide(Decision wanted) noexcept {
    Decision expected = Decision::open;
    return decision_.compare_exchange_strong(expected, wanted) || expected == wanted;
  }

  std::atomic<Decision> decision_{Decision::open};
  std::atomic<bool> broken_{false};
  std::unique_ptr<Doorbell> bell_;
  std::mutex mutex_;
  std::vector<transports::Channel*> channels_;
  std::shared_ptr<Offer> next_;
  std::shared_ptr<Offer> current_;
};

}  // namespace migrationd::migration
