// SPDX-License-Identifier: Apache-2.0
#include "transports/zero_copy_writer.hpp"

#include <fmt/format.h>
#include <linux/capability.h>
#include <linux/errqueue.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>

namespace migrationd::transports {
namespace {

// How long a write that met the limit of locked memory waits for some of its own to be done with.
constexpr int unlock_wait_ms = 20;

Error cannot_write(int number) { return Error::from_errno("Unable to write to socket", number); }

void advance(std::vector<iovec>& pieces, std::size_t count) {
  auto piece = pieces.begin();
  while (piece != pieces.end() && count >= piece->iov_len) {
    count -= piece->iov_len;
    ++piece;
  }
  pieces.erase(pieces.begin(), piece);
  if (count == 0) return;
  pieces.front().iov_base = static_cast<std::byte*>(pieces.front().iov_base) + count;
  pieces.front().iov_len -= count;
}

// CAP_IPC_LOCK, as far as it can be told from inside; a piece that is refused later is copied.
bool may_lock_anything() noexcept {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  return (data[0].effective & (1U << CAP_IPC_LOCK)) != 0;
}

}  // namespace

Result<void> check_locked_memory(std::uint64_t bytes) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return Error::from_errno("ask for the limit of locked memory");
  if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= bytes || may_lock_anything()) return {};
  return Error::from_errno("Process can't lock enough memory for using MSG_ZEROCOPY", ENOBUFS);
}

Result<std::unique_ptr<ZeroCopyWriter>> ZeroCopyWriter::make(Channel& channel, const StopSource& stop) {
  const int on = 1;
  const int fd = channel.readable_fd();
  if (::setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on) != 0)
    return plan_error("Zero copy send feature not detected in host kernel");
  return std::unique_ptr<ZeroCopyWriter>(new ZeroCopyWriter(fd, stop));
}

Result<void> ZeroCopyWriter::write(std::span<const iovec> head, std::span<const iovec> body) {
  MD_CHECK(send(head, body.empty() ? 0 : MSG_MORE));
  return body.empty() ? Result<void>() : send(body, MSG_ZEROCOPY);
}

Result<void> ZeroCopyWriter::send(std::span<const iovec> pieces, int flags) {
  rest_.assign(pieces.begin(), pieces.end());
  const int wanted = flags;
  while (!rest_.empty()) {
    if (stop_.requested()) return cancelled_error();
    msghdr message{};
    message.msg_iov = rest_.data();
    message.msg_iovlen = std::min<std::size_t>(rest_.size(), IOV_MAX);
    const ssize_t count = ::sendmsg(fd_, &message, flags | MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count >= 0) {
      any_ = any_ || (wanted & MSG_ZEROCOPY) != 0;
      if ((flags & MSG_ZEROCOPY) != 0) ++sent_;
      flags = wanted;
      advance(rest_, static_cast<std::size_t>(count));
    } else if (errno == ENOBUFS && (flags & MSG_ZEROCOPY) != 0) {
      // Too much is locked. Some of it is perhaps ours and done with; if not, this piece is copied.
      const std::uint32_t before = settled_;
      MD_CHECK(take_notifications());
      if (settled_ == before && settled_ != sent_) MD_CHECK(wait(0, unlock_wait_ms));
      if (settled_ == before) flags &= ~MSG_ZEROCOPY;
    } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
      MD_CHECK(wait(POLLOUT, -1));
    } else if (errno != EINTR) {
      return cannot_write(errno);
    }
  }
  return {};
}

// True when there were some.
Result<bool> ZeroCopyWriter::take_notifications() {
  bool some = false;
  while (true) {
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(sock_extended_err) + sizeof(sockaddr_storage))> control{};
    msghdr message{};
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (::recvmsg(fd_, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) return some;
      return cannot_write(errno);
    }
    for (const cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr;
         part = CMSG_NXTHDR(&message, const_cast<cmsghdr*>(part))) {
      if (part->cmsg_len < CMSG_LEN(sizeof(sock_extended_err))) continue;
      sock_extended_err about{};
      std::memcpy(&about, CMSG_DATA(part), sizeof about);
      if (about.ee_origin != SO_EE_ORIGIN_ZEROCOPY || about.ee_errno != 0) continue;
      // A range of numbers, both ends included.
      settled_ += about.ee_data - about.ee_info + 1;
      if ((about.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) == 0) avoided_ = true;
      some = true;
    }
  }
}

// Until one of the events, or something on the error queue.
Result<void> ZeroCopyWriter::wait(short events, int timeout_ms) {
  while (true) {
    pollfd polled[2] = {{fd_, events, 0}, {stop_.fd(), POLLIN, 0}};
    const int ready = ::poll(polled, 2, timeout_ms);
    if (stop_.requested()) return cancelled_error();
    if (ready < 0 && errno != EINTR) return Error::from_errno("wait for the socket");
    if (ready == 0 || (polled[0].revents & events) != 0) return {};
    if ((polled[0].revents & (POLLERR | POLLHUP)) == 0) continue;
    MD_TRY(const bool some, take_notifications());
    if (some && events == 0) return {};
    // Without notifications it was an error of the connection.
    if (!some) return check_socket();
  }
}

Result<void> ZeroCopyWriter::check_socket() const {
  int failure = 0;
  socklen_t size = sizeof failure;
  if (::getsockopt(fd_, SOL_SOCKET, SO_ERROR, &failure, &size) != 0) failure = errno;
  return cannot_write(failure != 0 ? failure : EPIPE);
}

Result<ZeroCopyWriter::Outcome> ZeroCopyWriter::settle() {
  MD_CHECK(take_notifications());
  while (settled_ != sent_) MD_CHECK(wait(0, -1));
  const Outcome outcome = !any_ ? Outcome::nothing_sent : avoided_ ? Outcome::avoided : Outcome::copied;
  any_ = avoided_ = false;
  return outcome;
}

}  // namespace migrationd::transports
