// SPDX-License-Identifier: Apache-2.0
//
// Gate: a one-shot event between two threads, waited for together with the migration's stop.
// Thread: open() and is_open() from any; wait() from one.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"

#include <memory>

namespace migrationd {

class Gate {
 public:
  // Fails only when the process is out of descriptors.
  static Result<std::unique_ptr<Gate>> make();

  // What was written before open() is seen by who passed wait(). Idempotent.
  void open() noexcept { event_.request(); }
  bool is_open() const noexcept { return event_.requested(); }
  // Readable once open; for poll(2).
  int fd() const noexcept { return event_.fd(); }
  // Ok when the gate is open; ErrorKind::cancelled when the stop was raised first. An open gate wins.
  Result<void> wait(const StopSource& stop) const;

 private:
  explicit Gate(std::unique_ptr<StopSource> event) noexcept : owned_(std::move(event)), event_(*owned_) {}
  // A raised descriptor that stays raised is what a StopSource is; only the meaning differs.
  std::unique_ptr<StopSource> owned_;
  StopSource& event_;
};

}  // namespace migrationd
