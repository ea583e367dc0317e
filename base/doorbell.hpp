// SPDX-License-Identifier: Apache-2.0
//
// Doorbell: "look again", between two threads of a migration, waited for together with its stop.
//
// What changed lies elsewhere, in atomics or under a lock; the bell only ends a wait. So the pattern is: look, and if
// there is nothing to do, wait() and look again. A ring before the wait is not lost, several rings are one.
//
// Thread: ring() from any; wait() from one at a time. What was written before ring() is seen by who passed wait().
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"

#include <chrono>
#include <memory>

namespace migrationd {

class Doorbell {
 public:
  // Fails only when the process is out of descriptors.
  static Result<std::unique_ptr<Doorbell>> make();

  void ring() noexcept;
  // Ok when it rang since the last wait; ErrorKind::cancelled when the stop was raised first.
  Result<void> wait(const StopSource& stop);
  // The same, for so long at most: false when it did not ring.
  Result<bool> wait_for(const StopSource& stop, std::chrono::milliseconds limit);

 private:
  explicit Doorbell(UniqueFd event) noexcept : event_(std::move(event)) {}

  UniqueFd event_;
};

}  // namespace migrationd
