// SPDX-License-Identifier: Apache-2.0
//
// PostcopyControl: what control says to a source that may go into postcopy: start it, break it, mend it, or cancel it
// while it can still be cancelled. The mover commits before the first byte of the package (LinkControl).
//
// Thread: control and the mover, as the members say.
#pragma once

#include "base/doorbell.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "daemon/migration/link_control.hpp"
#include "transports/connect.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

namespace migrationd::migration {

class PostcopyControl : public LinkControl {
 public:
  static Result<std::unique_ptr<PostcopyControl>> make();

  // --- control -----------------------------------------------------------------------------------------------
  // migrate-start-postcopy; any time, any number of times.
  void start() noexcept { wanted_.store(true, std::memory_order_release); }
  // migrate with `resume`: the next connection.
  void give_target(transports::OutgoingTarget target);

  // --- mover -------------------------------------------------------------------------------------------------
  bool wanted() const noexcept { return wanted_.load(std::memory_order_acquire); }
  // Waits for give_target() or the stop.
  Result<transports::OutgoingTarget> await_target(const StopSource& stop);

 private:
  explicit PostcopyControl(std::unique_ptr<Doorbell> bell) noexcept : bell_(std::move(bell)) {}

  std::atomic<bool> wanted_{false};
  std::unique_ptr<Doorbell> bell_;
  std::mutex mutex_;  // guards target_, which control gives and the mover takes
  std::optional<transports::OutgoingTarget> target_;
};

}  // namespace migrationd::migration
