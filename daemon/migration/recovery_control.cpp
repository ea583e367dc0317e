// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/recovery_control.hpp"

#include <utility>

namespace migrationd::migration {

Result<std::unique_ptr<RecoveryControl>> RecoveryControl::make() {
  MD_TRY(auto bell, Doorbell::make());
  return std::unique_ptr<RecoveryControl>(new RecoveryControl(std::move(bell)));
}

Result<void> RecoveryControl::give_target(transports::IncomingTarget target) {
  MD_TRY(auto replaced, StopSource::make());
  auto offer = std::make_shared<Offer>(Offer{std::move(target), std::move(replaced)});
  const std::lock_guard lock(mutex_);
  if (current_) current_->replaced->request();
  next_ = std::move(offer);
  bell_->ring();
  return {};
}

Result<std::shared_ptr<RecoveryControl::Offer>> RecoveryControl::await_offer(const StopSource& stop) {
  while (true) {
    {
      const std::lock_guard lock(mutex_);
      current_.reset();
      if (next_) {
        current_ = std::move(next_);
        next_.reset();
        return current_;
      }
    }
    MD_CHECK(bell_->wait(stop));
  }
}

void RecoveryControl::forget_offer() noexcept {
  const std::lock_guard lock(mutex_);
  current_.reset();
}

}  // namespace migrationd::migration
