// SPDX-License-Identifier: Apache-2.0
//
// Between typed addresses and the kernel's: name resolution that a stop can leave, unix and vsock names, what a
// socket is bound to, and the options every stream socket of ours gets. Used by connect and listen.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "transports/address.hpp"

#include <netdb.h>
#include <sys/socket.h>

#include <chrono>
#include <vector>

namespace migrationd::transports {

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;

  const sockaddr* get() const noexcept { return reinterpret_cast<const sockaddr*>(&storage); }
  int family() const noexcept { return storage.ss_family; }
};

struct ResolveOptions {
  bool passive = false;        // for listening: an empty host is any address
  StopSource* stop = nullptr;  // ends the wait, if there is one
  std::chrono::milliseconds limit{60000};
  decltype(&::getaddrinfo) look_up = ::getaddrinfo;  // tests put one here that hangs
};

// All addresses of host and port, in the order to try them; at least one. getaddrinfo(3) cannot be interrupted,
// so names are looked up on a helper thread; one that is left behind is joined later, and their number is
// bounded. Errors: "address resolution failed for HOST:PORT: Name or service not known",
// "Cannot disable IPv4 and IPv6 at same time".
Result<std::vector<SocketAddress>> resolve(const InetAddress& inet, const ResolveOptions& options);

// Error: "UNIX socket path 'PATH' is too long".
Result<SocketAddress> unix_socket_address(const UnixAddress& local);
// Errors: "Failed to parse cid 'a'", "Failed to parse port 'b'".
Result<SocketAddress> vsock_socket_address(const VsockAddress& vsock);

// A close-on-exec, non-blocking stream socket; nobody shares it, so O_NONBLOCK harms nobody. The error for vsock
// says what the kernel lacks.
Result<UniqueFd> make_socket(int family, bool mptcp = false);
// "HOST:PORT", "PATH", "CID:PORT": as QEMU shows them in "Failed to connect to '...'".
std::string peer_text(const Address& address);
// What the socket is bound to, with the port the system chose; or what its peer is.
enum class SocketSide : bool { own, peer };
Result<Address> name_of_socket(int fd, SocketSide side);
// No delay for small records; keep-alive probes if asked. Buffers stay the kernel's: it adapts TCP's to the
// network, and a unix socket's 208 KiB were the best of what was measured (64 KiB to 4 MiB).
void tune_socket(int fd, bool keep_alive);
// For a TCP connection that stands: to this same host the adaptive buffers grow to megabytes, and every byte is
// read from memory instead of cache. A small send buffer took a quarter of the CPU time off (0.90 to 0.66 s per
// GiB, source and destination, pages of 4 KiB with headers).
void tune_connection(int fd);

}  // namespace migrationd::transports
