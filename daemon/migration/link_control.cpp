// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/link_control.hpp"

#include <utility>

namespace migrationd::migration {

void LinkControl::break_connections() {
  const std::lock_guard lock(mutex_);
  if (channels_.empty()) return;
  broken_ = true;
  for (transports::Channel* const channel : channels_) channel->shutdown();
}

void LinkControl::watch(std::vector<transports::Channel*> channels) {
  const std::lock_guard lock(mutex_);
  channels_ = std::move(channels);
}

}  // namespace migrationd::migration
