// SPDX-License-Identifier: Apache-2.0
#include "guest/wire.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

namespace migrationd::guest {

namespace {

constexpr std::string_view the_daemon = "the daemon";

// Whether the socket is ready for `events`.
Result<bool> wait_for(int socket, short events, std::chrono::milliseconds wait) {
  pollfd watched{socket, events, 0};
  const int timeout = wait.count() < 0 ? -1 : static_cast<int>(std::min<std::int64_t>(wait.count(), INT_MAX));
  const int ready = ::poll(&watched, 1, timeout);
  if (ready < 0 && errno != EINTR) return Error::from_errno("wait for the daemon");
  return ready > 0;
}

}  // namespace

Result<UniqueFd> connect_to(const char* path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::size_t length = std::strlen(path);
  if (length == 0 || length >= sizeof address.sun_path) {
    return plan_error(fmt::format("socket path '{}' has {} bytes, not 1 to {}", printable(path), length,
                                  sizeof address.sun_path - 1));
  }
  std::memcpy(address.sun_path, path, length);
  UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!socket) return Error::from_errno("make a socket");
  const timeval patience{daemon_wait.count(), 0};  // connect() waits for a place in the queue as long too
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) != 0) {
    return Error::from_errno("set the socket's timeout");
  }
  int failed = -1;
  do {
    failed = ::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  } while (failed != 0 && errno == EINTR);
  if (failed != 0) return Error::from_errno(fmt::format("connect to '{}'", printable(path, printable_address_bytes)));
  return socket;
}

Result<void> send_packet(int socket, ByteView bytes, std::span<const int> fds) {
  const auto until = std::chrono::steady_clock::now() + daemon_wait;
  while (true) {
    MD_TRY(const bool sent, try_send_packet(socket, bytes, fds, the_daemon));
    if (sent) return {};
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - std::chrono::steady_clock::now());
    if (left.count() <= 0)
      return Error(ErrorKind::peer, fmt::format("the daemon reads nothing for {} s", daemon_wait.count()));
    MD_CHECK(wait_for(socket, POLLOUT, left));
  }
}

Result<std::optional<Packet>> receive_packet(int socket, std::chrono::milliseconds wait) {
  MD_TRY(const bool ready, wait_for(socket, POLLIN, wait));
  if (!ready) return std::optional<Packet>{};
  return try_receive_packet(socket, the_daemon);
}

}  // namespace migrationd::guest
