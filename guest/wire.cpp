// SPDX-License-Identifier: Apache-2.0
#include "guest/wire.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>

namespace migrationd::guest {

namespace {

Error hung_up() { return Error(ErrorKind::peer, "the daemon hung up"); }

bool is_hangup(int err) noexcept { return err == EPIPE || err == ECONNRESET || err == ENOTCONN; }

union Control {
  cmsghdr header;
  std::array<std::byte, CMSG_SPACE(packet_fds * sizeof(int))> bytes;
};

std::vector<UniqueFd> descriptors_of(msghdr& message) {
  std::vector<UniqueFd> out;
  out.reserve(packet_fds);
  for (cmsghdr* part = CMSG_FIRSTHDR(&message); part != nullptr; part = CMSG_NXTHDR(&message, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof fd);
      out.emplace_back(fd);
    }
  }
  return out;
}

Result<Packet> parse(ByteView bytes, std::vector<UniqueFd> fds) {
  ByteReader in(bytes);
  MD_TRY(const Header header, decode_header(in));
  const FdCount count = fds_of(header.type);
  if (fds.size() < count.least || fds.size() > count.most) {
    return wire_error(fmt::format("{}: came with {} descriptors, not {} to {}", name_of(header.type), fds.size(),
                                  count.least, count.most));
  }
  const ByteView body = in.rest();
  return Packet{header, Bytes(body.begin(), body.end()), std::move(fds)};
}

// Whether something is there to be read.
Result<bool> wait_for(int socket, std::chrono::milliseconds wait) {
  pollfd watched{socket, POLLIN, 0};
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
  if (bytes.size() > packet_bytes || fds.size() > packet_fds) {
    return machine_error(fmt::format("a packet of {} bytes and {} descriptors is too large", bytes.size(), fds.size()));
  }
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  Control control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!fds.empty()) {
    message.msg_control = &control;
    message.msg_controllen = CMSG_SPACE(fds.size_bytes());
    cmsghdr* const rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(fds.size_bytes());
    std::memcpy(CMSG_DATA(rights), fds.data(), fds.size_bytes());
  }
  ssize_t sent = -1;
  do {
    sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return {};
  if (is_hangup(errno)) return hung_up();
  if (errno == EAGAIN || errno == EWOULDBLOCK) {
    return Error(ErrorKind::peer, fmt::format("the daemon reads nothing for {} s", daemon_wait.count()));
  }
  return Error::from_errno("send to the daemon");
}

Result<std::optional<Packet>> receive_packet(int socket, std::chrono::milliseconds wait) {
  MD_TRY(const bool ready, wait_for(socket, wait));
  if (!ready) return std::optional<Packet>{};
  std::array<std::byte, packet_bytes> bytes;
  iovec part{bytes.data(), bytes.size()};
  Control control{};
  msghdr message{};
  ssize_t length = -1;
  // A peer that closed without reading all of ours is an error once; what it said before is behind that.
  for (int tries = 0; tries < 2 && length < 0 && (tries == 0 || errno == ECONNRESET); ++tries) {
    message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    length = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  }
  if (length < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return std::optional<Packet>{};
    if (is_hangup(errno)) return hung_up();
    return Error::from_errno("receive from the daemon");
  }
  std::vector<UniqueFd> fds = descriptors_of(message);
  if (length == 0) return hung_up();
  if ((message.msg_flags & MSG_TRUNC) != 0)
    return wire_error(fmt::format("a packet of more than {} bytes", packet_bytes));
  if ((message.msg_flags & MSG_CTRUNC) != 0) return wire_error(fmt::format("more than {} descriptors", packet_fds));
  MD_TRY(Packet packet, parse(ByteView(bytes).first(static_cast<std::size_t>(length)), std::move(fds)));
  return std::optional<Packet>(std::move(packet));
}

}  // namespace migrationd::guest
