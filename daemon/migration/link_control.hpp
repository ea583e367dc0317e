// SPDX-License-Identifier: Apache-2.0
//
// LinkControl: the half of a postcopy's control that both sides have: cancel it while that is possible, break it.
//
// The one question that both threads may decide is whether the machine changes hands: commit() and cancel() exclude
// each other, so that a cancel is either refused or comes before.
//
// Thread: control and the mover, as the members say. A mutex, because channels are shut down by control while the mover
// replaces them.
#pragma once

#include "transports/channel.hpp"

#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

namespace migrationd::migration {

class LinkControl {
 public:
  // --- control -----------------------------------------------------------------------------------------------
  // May the migration be cancelled? False: the machine is changing hands or has done so.
  bool cancel() noexcept { return decide(Decision::cancelled); }
  // migrate-pause, yank: the connections are broken. Nothing when there is none.
  void break_connections();

  // --- mover -------------------------------------------------------------------------------------------------
  // The machine changes hands now. False: cancelled.
  bool commit() noexcept { return decide(Decision::committed); }
  // What break_connections() breaks; empty before they are destroyed.
  void watch(std::vector<transports::Channel*> channels);
  bool broken() const noexcept { return broken_.load(); }
  // True once: control broke the connections since the last call.
  bool take_broken() noexcept { return broken_.exchange(false); }

 private:
  enum class Decision : std::uint8_t { open, committed, cancelled };

  bool decide(Decision wanted) noexcept {
    Decision expected = Decision::open;
    return decision_.compare_exchange_strong(expected, wanted) || expected == wanted;
  }

  std::atomic<Decision> decision_{Decision::open};
  std::atomic<bool> broken_{false};
  std::mutex mutex_;  // guards channels_; see the top
  std::vector<transports::Channel*> channels_;
};

}  // namespace migrationd::migration
