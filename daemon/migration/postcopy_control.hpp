// SPDX-License-Identifier: Apache-2.0
//
// PostcopyControl: what control says to a source that may go into postcopy: start it, break it, mend it, or cancel it
// while it can still be cancelled.
//
// The one question that both threads may decide is whether the machine leaves: commit() and cancel() exclude each
// other, so that a cancel is either refused or comes before the first byte of the package.
//
// Thread: control and the mover, as the members say. A mutex, because channels are shut down by control while the mover
// replaces them.
#pragma once

#include "base/doorbell.hpp"
#include "base/gate.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "transports/channel.hpp"
#include "transports/connect.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace migrationd::migration {

class PostcopyControl {
 public:
  static Result<std::unique_ptr<PostcopyControl>> make();

  // --- control -----------------------------------------------------------------------------------------------
  // migrate-start-postcopy; any time, any number of times.
  void start() noexcept { wanted_.store(true, std::memory_order_release); }
  // May the migration be cancelled? False: the machine is leaving or has left.
  bool cancel() noexcept { return decide(Decision::cancelled); }
  // migrate-pause, yank: the connections are broken. Nothing when there is none.
  void break_connections();
  // migrate with `resume`: the next connection.
  void give_target(transports::OutgoingTarget target);

  // --- mover -------------------------------------------------------------------------------------------------
  bool wanted() const noexcept { return wanted_.load(std::memory_order_acquire); }
  // The machine leaves now. False: cancelled.
  bool commit() noexcept { return decide(Decision::committed); }
  // What break_connections() breaks; empty before they are destroyed.
  void watch(std::vector<transports::Channel*> channels);
  bool broken() const noexcept { return broken_.load(); }
  // True once: control broke the connections since the last call.
  bool take_broken() noexcept { return broken_.exchange(false); }
  // Waits for give_target() or the stop.
  Result<transports::OutgoingTarget> await_target(const StopSource& stop);

 private:
  enum class Decision : std::uint8_t { open, committed, cancelled };

  explicit PostcopyControl(std::unique_ptr<Doorbell> bell) noexcept : bell_(std::move(bell)) {}
  bool decide(Decision wanted) noexcept {
    Decision expected = Decision::open;
    return decision_.compare_exchange_strong(expected, wanted) || expected == wanted;
  }

  std::atomic<bool> wanted_{false};
  std::atomic<Decision> decision_{Decision::open};
  std::atomic<bool> broken_{false};
  std::unique_ptr<Doorbell> bell_;
  std::mutex mutex_;
  std::vector<transports::Channel*> channels_;
  std::optional<transports::OutgoingTarget> target_;
};

}  // namespace migrationd::migration
