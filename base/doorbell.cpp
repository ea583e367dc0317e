// SPDX-License-Identifier: Apache-2.0
#include "base/doorbell.hpp"

#include <poll.h>
#include <sys/eventfd.h>

namespace migrationd {

Result<std::unique_ptr<Doorbell>> Doorbell::make() {
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) return Error::from_errno("make a doorbell");
  return std::unique_ptr<Doorbell>(new Doorbell(UniqueFd(fd)));
}

void Doorbell::ring() noexcept {
  // Fails only when the counter is full: then it is readable, which is all that counts.
  [[maybe_unused]] const int written = ::eventfd_write(event_.get(), 1);
}

Result<void> Doorbell::wait(const StopSource& stop) {
  while (true) {
    if (stop.requested()) return cancelled_error();
    eventfd_t rings = 0;
    if (::eventfd_read(event_.get(), &rings) == 0) return {};
    pollfd fds[] = {{event_.get(), POLLIN, 0}, {stop.fd(), POLLIN, 0}};
    if (::poll(fds, 2, -1) < 0 && errno != EINTR) return Error::from_errno("wait for another thread");
  }
}

Result<bool> Doorbell::wait_for(const StopSource& stop, std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (true) {
    if (stop.requested()) return cancelled_error();
    eventfd_t rings = 0;
    if (::eventfd_read(event_.get(), &rings) == 0) return true;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return false;
    pollfd fds[] = {{event_.get(), POLLIN, 0}, {stop.fd(), POLLIN, 0}};
    if (::poll(fds, 2, static_cast<int>(left.count())) < 0 && errno != EINTR)
      return Error::from_errno("wait for another thread");
  }
}

}  // namespace migrationd
