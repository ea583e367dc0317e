// SPDX-License-Identifier: Apache-2.0
#include "ram/channel_crew.hpp"

#include <fmt/format.h>

#include <utility>

namespace migrationd::ram {

void ChannelFailure::take(std::size_t channel, Error error) {
  if (error.is_cancelled()) return;
  {
    const std::lock_guard lock(mutex_);
    if (!first_) first_ = std::move(error).with(fmt::format("multifd channel {}", channel));
  }
  stop_.request();
}

std::optional<Error> ChannelFailure::get() const {
  const std::lock_guard lock(mutex_);
  return first_;
}

}  // namespace migrationd::ram
