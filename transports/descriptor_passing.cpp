// SPDX-License-Identifier: Apache-2.0
#include "transports/descriptor_passing.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace migrationd::transports {
namespace {

using std::chrono::steady_clock;

// Revents of the socket; the stop and the deadline are errors. The end of a process that is watched counts as a
// hang-up.
Result<short> await_socket(int socket, short events, const StopSource& stop, const Deadline& deadline,
                           int peer_process = -1) {
  pollfd polled[3] = {{socket, events, 0}, {stop.fd(), POLLIN, 0}, {peer_process, POLLIN, 0}};
  while (true) {
    int wait = -1;
    if (deadline) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*deadline - steady_clock::now());
      wait = static_cast<int>(std::max<std::int64_t>(left.count(), 0));
    }
    const int ready = ::poll(polled, 3, wait);
    if (stop.requested()) return cancelled_error();
    if (ready < 0 && errno != EINTR) return Error::from_errno("wait for the socket");
    if (ready == 0 && deadline && steady_clock::now() >= *deadline) {
      return Error::from_errno("the peer kept silent", ETIMEDOUT);
    }
    if (ready > 0 && polled[0].revents != 0) return polled[0].revents;
    if (ready > 0 && polled[2].revents != 0) return POLLHUP;
  }
}

// Descriptors of a message, owned; also of one that is refused afterwards.
void take_descriptors(msghdr& message, std::vector<UniqueFd>& descriptors) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      descriptors.emplace_back(fd);
    }
  }
}

Result<void> send_whole(int socket, msghdr& message, std::size_t length, const StopSource& stop) {
  while (true) {
    if (stop.requested()) return cancelled_error();
    const ssize_t sent = ::sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0 && static_cast<std::size_t>(sent) == length) return {};
    if (sent > 0) {
      message.msg_iov->iov_base = static_cast<std::byte*>(message.msg_iov->iov_base) + sent;
      message.msg_iov->iov_len -= static_cast<std::size_t>(sent);
      length -= static_cast<std::size_t>(sent);
    } else if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      MD_TRY([[maybe_unused]] const short ready, await_socket(socket, POLLOUT, stop, {}));
    } else if (sent < 0 && errno == ETOOMANYREFS) {
      return Error::from_errno("too many descriptors are under way already (the limit of open files)");
    } else if (sent < 0 && errno != EINTR) {
      return Error::from_errno("Unable to write to socket");
    }
  }
}

}  // namespace

Result<void> send_bytes(int socket, ByteView bytes, const StopSource& stop) {
  iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  return bytes.empty() ? Result<void>() : send_whole(socket, message, bytes.size(), stop);
}

Result<void> send_descriptor(int socket, std::byte carrier, int descriptor, const StopSource& stop) {
  iovec piece{&carrier, 1};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  return send_whole(socket, message, 1, stop);
}

Result<void> end_writing(int socket) {
  // A peer that is gone already shows as its hangup.
  if (::shutdown(socket, SHUT_WR) != 0 && errno != ENOTCONN)
    return Error::from_errno("Unable to end the socket's stream");
  return {};
}

Result<std::size_t> receive(int socket, std::span<std::byte> into, std::vector<UniqueFd>& descriptors,
                            const StopSource& stop, const Deadline& deadline) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * descriptors_per_message)> control{};
  while (true) {
    MD_TRY([[maybe_unused]] const short ready, await_socket(socket, POLLIN, stop, deadline));
    iovec piece{into.data(), into.size()};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t got = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) continue;
    if (got < 0) return Error::from_errno("Unable to read from socket");
    take_descriptors(message, descriptors);
    // Also when this process may open no more: the kernel drops what it cannot install.
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
      return wire_error("descriptors were lost on the way (too many in one message, or the limit of open files)");
    }
    return static_cast<std::size_t>(got);
  }
}

// Its number may have been given to another process since; then the one that connected is gone all the same, and what
// is told of it too late is true.
UniqueFd watch_peer_process(int socket) noexcept {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return {};
  if (peer.pid <= 0 || peer.pid == ::getpid()) return {};
  return UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, peer.pid, 0)));
}

Result<bool> await_hangup(int socket, const StopSource& stop, int peer_process) {
  while (true) {
    MD_TRY(const short seen, await_socket(socket, 0, stop, {}, peer_process));
    if ((seen & POLLNVAL) != 0) return Error::from_errno("wait for the peer's end of the socket", EBADF);
    // Bytes that nobody read make the close a reset.
    if ((seen & POLLERR) != 0) return false;
    if ((seen & POLLHUP) != 0) return true;
  }
}

}  // namespace migrationd::transports
