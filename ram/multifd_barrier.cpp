// SPDX-License-Identifier: Apache-2.0
#include "ram/multifd_barrier.hpp"

#include <fmt/format.h>

namespace migrationd::ram {
namespace {

Error behind_the_end() { return wire_error("pages or a synchronisation point behind the last one of the main stream"); }

}  // namespace

Result<std::unique_ptr<MultifdBarrier>> MultifdBarrier::make(std::size_t channels, const StopSource& stop) {
  std::vector<Side> sides(channels);
  for (Side& side : sides) {
    MD_TRY(side.released, Doorbell::make());
  }
  MD_TRY(auto changed, Doorbell::make());
  return std::unique_ptr<MultifdBarrier>(new MultifdBarrier(std::move(sides), std::move(changed), stop));
}

Result<void> MultifdBarrier::check_open(Side& side) const {
  if (abandoned_) return cancelled_error();
  if (!closed_) return {};
  side.late = true;
  return behind_the_end();
}

Result<void> MultifdBarrier::arrive(std::size_t channel) {
  Side& side = sides_[channel];
  {
    const std::lock_guard lock(mutex_);
    MD_CHECK(check_open(side));
    side.arrived = true;
  }
  changed_->ring();
  return side.released->wait(stop_);
}

Result<void> MultifdBarrier::note_pages(std::size_t channel) {
  const std::lock_guard lock(mutex_);
  MD_CHECK(check_open(sides_[channel]));
  sides_[channel].pages = true;
  return {};
}

Result<void> MultifdBarrier::note_end(std::size_t channel) {
  {
    const std::lock_guard lock(mutex_);
    if (closed_ || abandoned_) return {};
    if (!last_section_) return wire_error("the source ended it before the migration was over");
    sides_[channel].ended = true;
  }
  changed_->ring();
  return {};
}

bool MultifdBarrier::may_ignore_failure(std::size_t channel) const {
  const std::lock_guard lock(mutex_);
  return abandoned_ || (closed_ && !sides_[channel].late);
}

Result<bool> MultifdBarrier::all_here() const {
  bool all = true;
  for (std::size_t channel = 0; channel < sides_.size(); ++channel) {
    const Side& side = sides_[channel];
    if (side.ended && !side.arrived)
      return wire_error(
          fmt::format("multifd channel {}: ended without the synchronisation that the main stream waits "
                      "for",
                      channel));
    all = all && side.arrived;
  }
  return all;
}

Result<bool> MultifdBarrier::meet(std::chrono::milliseconds patience) {
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      MD_TRY(const bool all, all_here());
      if (all) {
        for (Side& side : sides_) {
          side.arrived = side.pages = false;
          side.released->ring();
        }
        return true;
      }
    }
    MD_TRY(const bool rang, changed_->wait_for(stop_, patience));
    if (!rang) return false;
  }
}

Error MultifdBarrier::nobody_came(std::chrono::milliseconds waited) const {
  const std::lock_guard lock(mutex_);
  std::size_t channel = 0;
  while (channel + 1 < sides_.size() && sides_[channel].arrived) ++channel;
  return wire_error(
      fmt::format("multifd channel {}: no synchronisation point within {} ms of the main stream's, and nothing else on "
                  "any channel",
                  channel, waited.count()));
}

void MultifdBarrier::begin_last_section() {
  const std::lock_guard lock(mutex_);
  last_section_ = true;
}

Result<void> MultifdBarrier::close() {
  const std::lock_guard lock(mutex_);
  for (std::size_t channel = 0; channel < sides_.size(); ++channel) {
    if (sides_[channel].pages || sides_[channel].arrived)
      return std::move(behind_the_end()).with(fmt::format("multifd channel {}", channel));
  }
  closed_ = true;
  return {};
}

void MultifdBarrier::abandon() {
  const std::lock_guard lock(mutex_);
  abandoned_ = true;
  for (const Side& side : sides_) side.released->ring();
}

}  // namespace migrationd::ram
