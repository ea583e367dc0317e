// SPDX-License-Identifier: Apache-2.0
#include "transports/socket_address.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include <charconv>
#include <cstddef>
#include <cstring>

namespace migrationd::transports {

namespace {

SocketAddress from_bytes(const void* address, std::size_t length) {
  SocketAddress out;
  std::memcpy(&out.storage, address, length);
  out.length = static_cast<socklen_t>(length);
  return out;
}

bool parse_u32(const std::string& text, std::uint32_t& out) {
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), out);
  return !text.empty() && failure == std::errc() && end == text.data() + text.size();
}

Address inet_address(const char* host, std::uint16_t port, bool ipv6) {
  InetAddress out;
  out.host = host;
  out.port = std::to_string(port);
  (ipv6 ? out.ipv6 : out.ipv4) = true;
  return out;
}

Address unix_address(const SocketAddress& from) {
  sockaddr_un local{};
  std::memcpy(&local, &from.storage, sizeof local);
  const std::size_t length = from.length - offsetof(sockaddr_un, sun_path);
  UnixAddress out;
  if (length > 0 && local.sun_path[0] == '\0') {
    out.abstract = true;
    out.path.assign(local.sun_path + 1, length - 1);
  } else {
    out.path.assign(local.sun_path, ::strnlen(local.sun_path, length));
  }
  return out;
}

// The host part of what a socket is bound or connected to; empty for other families than IP.
std::string host_of(int fd, SocketSide side) {
  const auto name = name_of_socket(fd, side);
  const auto* inet = name ? std::get_if<InetAddress>(&*name) : nullptr;
  return inet != nullptr ? inet->host : std::string();
}

void set_option(int fd, int level, int name, int value) {
  // Every one of them is a wish: a socket without it still works.
  [[maybe_unused]] const int ignored = ::setsockopt(fd, level, name, &value, sizeof value);
}

}  // namespace

Result<SocketAddress> unix_socket_address(const UnixAddress& local) {
  sockaddr_un out{};
  out.sun_family = AF_UNIX;
  const std::size_t prefix = local.abstract ? 1 : 0;
  // A path needs its terminator; an abstract name is counted.
  const std::size_t room = sizeof out.sun_path - 1;
  if (local.path.size() > room)
    return plan_error(fmt::format("UNIX socket path '{}' is too long", printable(local.path, printable_address_bytes)));
  if (local.path.empty() || (!local.abstract && local.path.find('\0') != std::string::npos))
    return plan_error("invalid Unix socket address");
  std::memcpy(out.sun_path + prefix, local.path.data(), local.path.size());
  const bool counted = local.abstract && local.tight;
  return from_bytes(&out, counted ? offsetof(sockaddr_un, sun_path) + prefix + local.path.size() : sizeof out);
}

Result<SocketAddress> vsock_socket_address(const VsockAddress& vsock) {
  sockaddr_vm out{};
  out.svm_family = AF_VSOCK;
  if (!parse_u32(vsock.cid, out.svm_cid))
    return plan_error(fmt::format("Failed to parse cid '{}'", printable(vsock.cid)));
  if (!parse_u32(vsock.port, out.svm_port))
    return plan_error(fmt::format("Failed to parse port '{}'", printable(vsock.port)));
  return from_bytes(&out, sizeof out);
}

Result<UniqueFd> make_socket(int family, bool mptcp) {
  const int fd = ::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, mptcp ? IPPROTO_MPTCP : 0);
  if (fd >= 0) return UniqueFd(fd);
  const int err = errno;
  if (family == AF_VSOCK && err == EAFNOSUPPORT)
    return Error::from_errno("Failed to create socket: this kernel has no vsock (modprobe vsock)", err);
  if (mptcp) return Error::from_errno("Failed to create socket: this kernel has no multipath TCP", err);
  return Error::from_errno("Failed to create socket", err);
}

std::string peer_text(const Address& address) {
  if (const auto* inet = std::get_if<InetAddress>(&address))
    return printable(fmt::format("{}:{}", inet->host, inet->port), printable_address_bytes);
  if (const auto* local = std::get_if<UnixAddress>(&address)) return printable(local->path, printable_address_bytes);
  if (const auto* vsock = std::get_if<VsockAddress>(&address))
    return printable(fmt::format("{}:{}", vsock->cid, vsock->port), printable_address_bytes);
  return to_string(address);
}

Result<Address> name_of_socket(int fd, SocketSide side) {
  SocketAddress own;
  own.length = sizeof own.storage;
  const auto ask = side == SocketSide::own ? ::getsockname : ::getpeername;
  if (ask(fd, reinterpret_cast<sockaddr*>(&own.storage), &own.length) != 0)
    return Error::from_errno("ask for the socket's address");
  char host[INET6_ADDRSTRLEN] = "";
  switch (own.family()) {
    case AF_INET: {
      sockaddr_in inet{};
      std::memcpy(&inet, &own.storage, sizeof inet);
      ::inet_ntop(AF_INET, &inet.sin_addr, host, sizeof host);
      return inet_address(host, ntohs(inet.sin_port), false);
    }
    case AF_INET6: {
      sockaddr_in6 inet{};
      std::memcpy(&inet, &own.storage, sizeof inet);
      ::inet_ntop(AF_INET6, &inet.sin6_addr, host, sizeof host);
      return inet_address(host, ntohs(inet.sin6_port), true);
    }
    case AF_VSOCK: {
      sockaddr_vm vsock{};
      std::memcpy(&vsock, &own.storage, sizeof vsock);
      return Address(VsockAddress{std::to_string(vsock.svm_cid), std::to_string(vsock.svm_port)});
    }
    case AF_UNIX:
      return unix_address(own);
    default:
      return plan_error("the socket is of an unknown family");
  }
}

void tune_socket(int fd, bool keep_alive) {
  int family = 0;
  socklen_t size = sizeof family;
  if (::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size) != 0) return;
  if (keep_alive) set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  if (family == AF_INET || family == AF_INET6) {
    // Pages go out by the megabyte; what is small (a command, an answer, the last record) must not wait.
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  }
}

void tune_connection(int fd) {
  constexpr int same_host_send_buffer = 128 << 10;  // the kernel doubles it for its own bookkeeping
  const std::string peer = host_of(fd, SocketSide::peer);
  if (!peer.empty() && peer == host_of(fd, SocketSide::own))
    set_option(fd, SOL_SOCKET, SO_SNDBUF, same_host_send_buffer);
}

}  // namespace migrationd::transports
