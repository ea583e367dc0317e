// SPDX-License-Identifier: Apache-2.0
#include "guest/examples/cache/net.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

namespace cache {

namespace {

struct Address {
  sockaddr_storage bytes{};
  socklen_t length = 0;
};

bool parse_address(const std::string& text, Address& out) {
  if (text.rfind("unix:", 0) == 0) {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    const std::string path = text.substr(5);
    if (path.empty() || path.size() >= sizeof name.sun_path) return false;
    std::memcpy(name.sun_path, path.c_str(), path.size());
    std::memcpy(&out.bytes, &name, sizeof name);
    out.length = sizeof name;
    return true;
  }
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos) return false;
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(static_cast<std::uint16_t>(std::atoi(text.c_str() + colon + 1)));
  if (::inet_pton(AF_INET, text.substr(0, colon).c_str(), &name.sin_addr) != 1) return false;
  std::memcpy(&out.bytes, &name, sizeof name);
  out.length = sizeof name;
  return true;
}

int socket_for(const std::string& text, Address& address, int flags) {
  if (!parse_address(text, address)) {
    errno = EINVAL;
    return -1;
  }
  const int fd = ::socket(address.bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
  const int on = 1;
  if (fd >= 0 && address.bytes.ss_family == AF_INET) {
    ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  }
  return fd;
}

int closed_on_failure(int fd, int status) {
  if (fd >= 0 && status != 0) {
    const int why = errno;
    ::close(fd);
    errno = why;
    return -1;
  }
  return fd;
}

}  // namespace

int bound_socket(const std::string& text) {
  Address address;
  const int fd = socket_for(text, address, SOCK_NONBLOCK);
  if (fd < 0) return -1;
  if (address.bytes.ss_family == AF_UNIX) ::unlink(text.c_str() + 5);
  return closed_on_failure(fd, ::bind(fd, reinterpret_cast<sockaddr*>(&address.bytes), address.length));
}

int connected_socket(const std::string& text) {
  Address address;
  const int fd = socket_for(text, address, 0);
  if (fd < 0) return -1;
  return closed_on_failure(fd, ::connect(fd, reinterpret_cast<sockaddr*>(&address.bytes), address.length));
}

}  // namespace cache
