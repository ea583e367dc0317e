// SPDX-License-Identifier: Apache-2.0
#include "base/stop.hpp"

#include <poll.h>
#include <sys/eventfd.h>

namespace migrationd {

Result<std::unique_ptr<StopSource>> StopSource::make() {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return Error::from_errno("make the stop descriptor");
  return std::unique_ptr<StopSource>(new StopSource(UniqueFd(fd)));
}

void StopSource::request() noexcept {
  requested_.store(true, std::memory_order_release);
  // Cannot fail: the counter is written once or twice in its life, far from overflowing.
  [[maybe_unused]] const int written = ::eventfd_write(event_.get(), 1);
}

bool StopSource::sleep_for(std::chrono::nanoseconds duration) const noexcept {
  const auto deadline = std::chrono::steady_clock::now() + duration;
  while (!requested()) {
    const auto left = deadline - std::chrono::steady_clock::now();
    if (left <= std::chrono::nanoseconds::zero()) return true;
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec wait{static_cast<time_t>(seconds.count()), static_cast<long>((left - seconds).count())};
    pollfd poll_fd{event_.get(), POLLIN, 0};
    ::ppoll(&poll_fd, 1, &wait, nullptr);
  }
  return false;
}

}  // namespace migrationd
