// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/postcopy_control.hpp"

#include <utility>

namespace migrationd::migration {

Result<std::unique_ptr<PostcopyControl>> PostcopyControl::make() {
  MD_TRY(auto bell, Doorbell::make());
  return std::unique_ptr<PostcopyControl>(new PostcopyControl(std::move(bell)));
}

void PostcopyControl::give_target(transports::OutgoingTarget target) {
  {
    const std::lock_guard lock(mutex_);
    target_ = std::move(target);
  }
  bell_->ring();
}

Result<transports::OutgoingTarget> PostcopyControl::await_target(const StopSource& stop) {
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      if (target_) {
        transports::OutgoingTarget target = std::move(*target_);
        target_.reset();
        return target;
      }
    }
    MD_CHECK(bell_->wait(stop));
  }
}

}  // namespace migrationd::migration
