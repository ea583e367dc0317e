// SPDX-License-Identifier: Apache-2.0
#include "guest/packet_io.hpp"

#include <fmt/format.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace migrationd::guest {

namespace {

Error hung_up(std::string_view peer) { return Error(ErrorKind::peer, fmt::format("{} hung up", peer)); }

bool is_hangup(int err) noexcept { return err == EPIPE || err == ECONNRESET || err == ENOTCONN; }
bool is_for_later(int err) noexcept { return err == EAGAIN || err == EWOULDBLOCK || err == EINTR; }

union PacketControl {
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

Result<Packet> parse_packet(ByteView bytes, std::vector<UniqueFd> fds) {
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

}  // namespace

Result<bool> try_send_packet(int socket, ByteView bytes, std::span<const int> fds, std::string_view peer) {
  if (bytes.size() > packet_bytes || fds.size() > packet_fds) {
    return machine_error(fmt::format("a packet of {} bytes and {} descriptors is too large", bytes.size(), fds.size()));
  }
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  PacketControl control{};
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
    sent = ::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return true;
  if (is_for_later(errno)) return false;
  if (is_hangup(errno)) return hung_up(peer);
  return Error::from_errno(fmt::format("send to {}", peer));
}

Result<std::optional<Packet>> try_receive_packet(int socket, std::string_view peer) {
  // Zeros here would be more work than the rest.
  std::array<std::byte, packet_bytes> bytes;  // NOLINT(cppcoreguidelines-pro-type-member-init)
  iovec part{bytes.data(), bytes.size()};
  PacketControl control{};
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
    if (is_for_later(errno)) return std::optional<Packet>{};
    if (is_hangup(errno)) return hung_up(peer);
    return Error::from_errno(fmt::format("receive from {}", peer));
  }
  std::vector<UniqueFd> fds = descriptors_of(message);
  if (length == 0) return hung_up(peer);
  if ((message.msg_flags & MSG_TRUNC) != 0)
    return wire_error(fmt::format("a packet of more than {} bytes", packet_bytes));
  if ((message.msg_flags & MSG_CTRUNC) != 0) return wire_error(fmt::format("more than {} descriptors", packet_fds));
  MD_TRY(Packet packet, parse_packet(ByteView(bytes).first(static_cast<std::size_t>(length)), std::move(fds)));
  return std::optional<Packet>(std::move(packet));
}

}  // namespace migrationd::guest
