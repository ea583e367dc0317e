// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/listening_socket.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <charconv>
#include <chrono>
#include <cstring>
#include <thread>

namespace migrationd::control {
namespace {

using namespace std::chrono_literals;

constexpr int backlog = 128;
constexpr mode_t any_bits = 07777;

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Keeps other starts in this directory waiting while the path is looked at and bound. A directory that cannot be
// opened or locked (somebody holds it for long) gives no lock: the start goes on with the small race.
UniqueFd lock_directory(const std::string& path) {
  UniqueFd directory(::open(directory_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return directory;
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (::flock(directory.get(), LOCK_EX | LOCK_NB) == 0) break;
    std::this_thread::sleep_for(10ms);
  }
  return directory;
}

const char* use_name(SocketUse use) noexcept { return use == SocketUse::guest ? "guest socket" : "control socket"; }

Result<sockaddr_un> address_of(const std::string& path, SocketUse use) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty()) return plan_error(fmt::format("{}: the path is empty", use_name(use)));
  if (path.size() >= sizeof address.sun_path) {
    return plan_error(fmt::format("{}: UNIX socket path '{}' is too long", use_name(use), printable(path, 200)));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<UniqueFd> new_socket(SocketUse use) {
  UniqueFd socket(
      ::socket(AF_UNIX, (use == SocketUse::guest ? SOCK_SEQPACKET : SOCK_STREAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket) return Error::from_errno(fmt::format("{}: socket", use_name(use)));
  return socket;
}

int connect_once(int socket, const sockaddr_un& address) {
  return ::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
}

// Leaves nothing at the path, or says why the path cannot be ours.
Result<void> clear_path(const std::string& path, const sockaddr_un& address, SocketUse use) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) return {};
    return Error::from_errno(fmt::format("{} {}", use_name(use), path));
  }
  if (!S_ISSOCK(status.st_mode)) {
    return plan_error(fmt::format("{} {}: the path exists and is not a socket", use_name(use), path));
  }
  MD_TRY(const UniqueFd probe, new_socket(use));
  const int err = connect_once(probe.get(), address);
  // EAGAIN: the queue of a live socket is full.
  if (err == 0 || err == EAGAIN) {
    return plan_error(fmt::format("{} {}: in use by another process", use_name(use), path));
  }
  if (err != ECONNREFUSED)
    return Error::from_errno(fmt::format("{} {}: cannot tell whose it is", use_name(use), path), err);
  if (::unlink(path.c_str()) != 0)
    return Error::from_errno(fmt::format("{} {}: remove stale socket", use_name(use), path));
  return {};
}

Result<gid_t> group_id(const std::string& group, SocketUse use) {
  gid_t id = 0;
  const auto [end, error] = std::from_chars(group.data(), group.data() + group.size(), id);
  if (error == std::errc{} && end == group.data() + group.size()) return id;
  // getgrnam: the process has one thread when sockets are made.
  if (const auto* entry = ::getgrnam(group.c_str())) return entry->gr_gid;
  return plan_error(fmt::format("{}: there is no group '{}'", use_name(use), printable(group)));
}

Result<void> set_access(const SocketOptions& options, SocketUse use) {
  if (options.group) {
    MD_TRY(const gid_t id, group_id(*options.group, use));
    if (::chown(options.path.c_str(), static_cast<uid_t>(-1), id) != 0) {
      return Error::from_errno(
          fmt::format("{} {}: set group '{}'", use_name(use), options.path, printable(*options.group)));
    }
  }
  const mode_t mode = options.mode.value_or(options.group ? 0660 : 0600);
  if (::chmod(options.path.c_str(), mode & any_bits) != 0) {
    return Error::from_errno(fmt::format("{} {}: set mode {:o}", use_name(use), options.path, mode));
  }
  return {};
}

}  // namespace

Result<ListeningSocket> ListeningSocket::bind(const SocketOptions& options, SocketUse use) {
  MD_TRY(const sockaddr_un address, address_of(options.path, use));
  const UniqueFd lock = lock_directory(options.path);
  MD_CHECK(clear_path(options.path, address, use));
  MD_TRY(UniqueFd socket, new_socket(use));

  const mode_t before = ::umask(0177);  // nobody else may connect until mode and group are set
  const int bound = ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address);
  const int err = errno;
  ::umask(before);
  if (bound != 0) return Error::from_errno(fmt::format("{} {}: bind", use_name(use), options.path), err);

  ListeningSocket listening(std::move(socket), "unix:" + options.path);
  struct stat status {};
  if (::stat(options.path.c_str(), &status) != 0) {
    return Error::from_errno(fmt::format("{} {}", use_name(use), options.path));
  }
  listening.path_ = options.path;
  listening.device_ = status.st_dev;
  listening.inode_ = status.st_ino;
  MD_CHECK(set_access(options, use));
  if (::listen(listening.fd(), backlog) != 0) {
    return Error::from_errno(fmt::format("{} {}: listen", use_name(use), options.path));
  }
  return listening;
}

Result<ListeningSocket> ListeningSocket::adopt(UniqueFd socket, SocketUse use) {
  const auto option = [&](int name) {
    int value = -1;
    socklen_t size = sizeof value;
    return ::getsockopt(socket.get(), SOL_SOCKET, name, &value, &size) == 0 ? value : -1;
  };
  const bool stream = use == SocketUse::control;
  if (option(SO_ACCEPTCONN) != 1 || option(SO_TYPE) != (stream ? SOCK_STREAM : SOCK_SEQPACKET)) {
    return plan_error(fmt::format("{}: descriptor {} is not a listening {} socket", use_name(use), socket.get(),
                                  stream ? "stream" : "packet"));
  }
  const int flags = ::fcntl(socket.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket.get(), F_SETFL, flags | O_NONBLOCK) < 0 ||
      ::fcntl(socket.get(), F_SETFD, FD_CLOEXEC) < 0) {
    return Error::from_errno(fmt::format("{}: set flags of the inherited socket", use_name(use)));
  }
  sockaddr_un address{};
  socklen_t size = sizeof address;
  std::string name = fmt::format("descriptor {}", socket.get());
  if (::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0 && address.sun_family == AF_UNIX &&
      address.sun_path[0] != '\0') {
    name = fmt::format("unix:{}", address.sun_path);
  }
  return ListeningSocket(std::move(socket), std::move(name));
}

void ListeningSocket::own_path() {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  struct stat status {};
  if (::getsockname(socket_.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      address.sun_family != AF_UNIX || address.sun_path[0] == '\0' || ::stat(address.sun_path, &status) != 0)
    return;
  path_ = address.sun_path;
  device_ = status.st_dev;
  inode_ = status.st_ino;
}

ListeningSocket::~ListeningSocket() {
  if (!socket_ || path_.empty()) return;
  struct stat status {};
  if (::lstat(path_.c_str(), &status) == 0 && status.st_dev == device_ && status.st_ino == inode_) {
    ::unlink(path_.c_str());
  }
}

Result<UniqueFd> ListeningSocket::accept() const {
  UniqueFd client(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (client) return client;
  switch (errno) {
    case EAGAIN:
    case EINTR:
    case ECONNABORTED:
      return UniqueFd();
    default:
      return Error::from_errno("control socket: accept");
  }
}

}  // namespace migrationd::control
