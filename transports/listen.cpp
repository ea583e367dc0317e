// SPDX-License-Identifier: Apache-2.0
#include "transports/listen.hpp"

#include "transports/descriptor_channel.hpp"
#include "transports/exec_child.hpp"
#include "transports/filter_channel.hpp"
#include "transports/open_file.hpp"
#include "transports/socket_address.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <utility>

namespace migrationd::transports {

namespace {

using namespace std::chrono_literals;

// A listening name is the host's own; one that needs longer would hold up the control thread.
constexpr auto resolve_limit = 2s;
// A random port that is free for IPv6 may be taken for IPv4.
constexpr int random_port_tries = 8;

std::uint16_t port_of(const SocketAddress& address) {
  std::uint16_t port = 0;
  static_assert(offsetof(sockaddr_in, sin_port) == offsetof(sockaddr_in6, sin6_port));
  std::memcpy(&port, reinterpret_cast<const char*>(&address.storage) + offsetof(sockaddr_in, sin_port), sizeof port);
  return ntohs(port);
}

void set_port(SocketAddress& address, std::uint16_t port) {
  port = htons(port);
  std::memcpy(reinterpret_cast<char*>(&address.storage) + offsetof(sockaddr_in, sin_port), &port, sizeof port);
}

void set_flag(int fd, int level, int name, bool on) {
  const int value = on ? 1 : 0;
  [[maybe_unused]] const int ignored = ::setsockopt(fd, level, name, &value, sizeof value);
}

// A family this kernel or host does not have; no reason to fail while another address works.
bool is_missing_family(int err) { return err == EAFNOSUPPORT || err == EADDRNOTAVAIL; }

std::string describe_peer(int fd, const std::string& fallback) {
  const auto peer = name_of_socket(fd, SocketSide::peer);
  if (!peer || std::holds_alternative<UnixAddress>(*peer)) return fallback;
  return to_string(*peer);
}

}  // namespace

// --- building -----------------------------------------------------------------------------------------------

class ListenerBuilder {
 public:
  explicit ListenerBuilder(int backlog) : backlog_(std::max(backlog, 1)) {}

  Result<Listener> listen(const Address& address) {
    listener_.described_ = to_string(address);
    if (const auto* inet = std::get_if<InetAddress>(&address)) {
      MD_CHECK(listen_inet(*inet));
    } else if (const auto* local = std::get_if<UnixAddress>(&address)) {
      MD_CHECK(listen_unix(*local));
    } else {
      MD_CHECK(listen_vsock(std::get<VsockAddress>(address)));
    }
    MD_CHECK(finish());
    return std::move(listener_);
  }

 private:
  Result<void> listen_inet(const InetAddress& inet) {
    listener_.keep_alive_ = inet.keep_alive;
    MD_TRY(std::vector<SocketAddress> places, resolve(inet, {.passive = true, .limit = resolve_limit}));
    // For an empty host: the IPv6 socket first, it is the one whose random port the IPv4 socket then takes.
    if (inet.host.empty())
      std::stable_partition(places.begin(), places.end(),
                            [](const SocketAddress& place) { return place.family() == AF_INET6; });
    const int first = port_of(places.front());
    const int last = std::max<int>(first, inet.to.value_or(0));
    const int tries = first == 0 ? random_port_tries : last - first + 1;
    Result<void> result;
    for (int i = 0; i < tries; ++i) {
      result = listen_at_port(inet, places, static_cast<std::uint16_t>(first == 0 ? 0 : first + i));
      if (result || result.error().sys_errno() != EADDRINUSE) return result;
      listener_.sockets_.clear();
    }
    return Error::from_errno("Failed to find an available port", EADDRINUSE);
  }

  Result<void> listen_at_port(const InetAddress& inet, const std::vector<SocketAddress>& places, std::uint16_t port) {
    Result<void> last;
    for (SocketAddress place : places) {
      set_port(place, port);
      last = listen_at(inet, place, places.size() > 1);
      if (!last && !is_missing_family(last.error().sys_errno())) return last;
      // Port 0 is decided by the first socket, all others take the same.
      if (last && port == 0) {
        MD_TRY(const Address bound, name_of_socket(listener_.sockets_.back().get(), SocketSide::own));
        port = static_cast<std::uint16_t>(std::stoi(std::get<InetAddress>(bound).port));
      }
    }
    if (!listener_.sockets_.empty()) return {};
    return last;
  }

  Result<void> listen_at(const InetAddress& inet, const SocketAddress& place, bool one_of_several) {
    MD_TRY(UniqueFd fd, make_socket(place.family(), inet.mptcp));
    set_flag(fd.get(), SOL_SOCKET, SO_REUSEADDR, true);
    // "[::]" alone takes IPv4 connections too, as in QEMU; beside an IPv4 socket it must not.
    if (place.family() == AF_INET6) set_flag(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, one_of_several || inet.ipv4 == false);
    // Buffer sizes are inherited by what is accepted, and matter for the window only when set before.
    tune_socket(fd.get(), inet.keep_alive);
    return bind_and_listen(std::move(fd), place, "Failed to bind socket");
  }

  Result<void> listen_unix(const UnixAddress& local) {
    MD_TRY(const SocketAddress place, unix_socket_address(local));
    if (!local.abstract) MD_CHECK(remove_old_socket(local.path));
    MD_TRY(UniqueFd fd, make_socket(AF_UNIX));
    MD_CHECK(
        bind_and_listen(std::move(fd), place,
                        fmt::format("Failed to bind socket to {}", printable(local.path, printable_address_bytes))));
    struct stat about {};
    if (!local.abstract && ::lstat(local.path.c_str(), &about) == 0)
      listener_.path_ = Listener::OwnedPath{local.path, about.st_dev, about.st_ino};
    return {};
  }

  // QEMU removes whatever is at the path; only a socket is nobody's data.
  static Result<void> remove_old_socket(const std::string& path) {
    struct stat about {};
    const std::string what = fmt::format("Failed to unlink socket {}", printable(path, printable_address_bytes));
    if (::lstat(path.c_str(), &about) != 0) return {};  // bind tells what is wrong, if anything
    if (S_ISDIR(about.st_mode)) return Error::from_errno(what, EISDIR);
    if (!S_ISSOCK(about.st_mode)) return plan_error(what + ": it is not a socket");
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return Error::from_errno(what);
    return {};
  }

  Result<void> listen_vsock(const VsockAddress& vsock) {
    MD_TRY(const SocketAddress place, vsock_socket_address(vsock));
    MD_TRY(UniqueFd fd, make_socket(AF_VSOCK));
    return bind_and_listen(std::move(fd), place, "Failed to bind socket");
  }

  Result<void> bind_and_listen(UniqueFd fd, const SocketAddress& place, std::string_view what) {
    if (::bind(fd.get(), place.get(), place.length) != 0) return Error::from_errno(std::string(what));
    if (::listen(fd.get(), backlog_) != 0) return Error::from_errno("Failed to listen on socket");
    listener_.sockets_.push_back(std::move(fd));
    return {};
  }

  Result<void> finish() {
    for (const UniqueFd& socket : listener_.sockets_) {
      MD_TRY(Address bound, name_of_socket(socket.get(), SocketSide::own));
      listener_.bound_.push_back(std::move(bound));
    }
    if (listener_.sockets_.size() == 1) return {};
    listener_.any_.reset(::epoll_create1(EPOLL_CLOEXEC));
    if (!listener_.any_) return Error::from_errno("make a descriptor for several sockets");
    for (const UniqueFd& socket : listener_.sockets_) {
      epoll_event wanted{};
      wanted.events = EPOLLIN;
      wanted.data.fd = socket.get();
      if (::epoll_ctl(listener_.any_.get(), EPOLL_CTL_ADD, socket.get(), &wanted) != 0)
        return Error::from_errno("watch several sockets");
    }
    return {};
  }

  Listener listener_;
  int backlog_;
};

// --- listener -----------------------------------------------------------------------------------------------

// The path has one owner: what was moved from must not remove it.
Listener::Listener(Listener&& other) noexcept
    : sockets_(std::move(other.sockets_)),
      any_(std::move(other.any_)),
      bound_(std::move(other.bound_)),
      path_(std::exchange(other.path_, std::nullopt)),
      described_(std::move(other.described_)),
      keep_alive_(other.keep_alive_) {}

Listener::~Listener() {
  if (!path_) return;
  struct stat about {};
  if (::lstat(path_->path.c_str(), &about) == 0 && about.st_dev == path_->device && about.st_ino == path_->inode)
    ::unlink(path_->path.c_str());
}

Result<std::unique_ptr<Channel>> Listener::accept_ready(StopSource& stop) {
  for (const UniqueFd& socket : sockets_) {
    UniqueFd fd(::accept4(socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (fd) {
      tune_socket(fd.get(), keep_alive_);
      const std::string description = describe_peer(fd.get(), described_);
      return std::make_unique<DescriptorChannel>(std::move(fd), DescriptorKind::socket, stop, description);
    }
    // Gone again, or a network error that Linux reports here (accept(2)): the next one may be better.
    constexpr int passing[] = {EAGAIN,    EINTR,  ECONNABORTED, EPROTO,     ENETDOWN,    ENOPROTOOPT,
                               EHOSTDOWN, ENONET, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, EPERM};
    if (std::find(std::begin(passing), std::end(passing), errno) == std::end(passing))
      return Error::from_errno("Failed to accept a connection");
  }
  return std::unique_ptr<Channel>();
}

Result<std::unique_ptr<Channel>> Listener::accept(StopSource& stop) {
  while (true) {
    pollfd polled[2] = {{fd(), POLLIN, 0}, {stop.fd(), POLLIN, 0}};
    const int ready = ::poll(polled, 2, -1);
    if (stop.requested()) return cancelled_error();
    if (ready < 0 && errno != EINTR) return Error::from_errno("wait for a connection");
    if (ready <= 0) continue;
    MD_TRY(auto channel, accept_ready(stop));
    if (channel) return channel;
  }
}

// --- incoming target ----------------------------------------------------------------------------------------

namespace {

// "fd:NUMBER" is one the process was started with, "fd:NAME" one a client passed.
Result<UniqueFd> take_descriptor(const std::string& name, FdSource& descriptors, const std::vector<int>& inherited) {
  if (name.empty() || name[0] < '0' || name[0] > '9') return descriptors.take_named(name);
  int number = 0;
  const auto [end, failure] = std::from_chars(name.data(), name.data() + name.size(), number);
  if (failure != std::errc() || end != name.data() + name.size())
    return plan_error(fmt::format("Invalid file descriptor number '{}'", printable(name)));
  const bool known = std::find(inherited.begin(), inherited.end(), number) != inherited.end();
  if (number < 3 || !known || ::fcntl(number, F_GETFD) < 0)
    return plan_error(fmt::format("File descriptor {} was not inherited by this process", number));
  // Not taken before it is known to be a stream: a control socket passed at start is inherited too.
  if (auto kind = kind_of(number); !kind) return std::move(kind).error().with(fmt::format("fd:{}", number));
  ::fcntl(number, F_SETFD, FD_CLOEXEC);
  return UniqueFd(number);
}

}  // namespace

IncomingTarget::IncomingTarget(Address address) : address_(std::move(address)) {}
IncomingTarget::IncomingTarget(IncomingTarget&&) noexcept = default;
IncomingTarget::~IncomingTarget() = default;

Result<std::unique_ptr<Channel>> IncomingTarget::take_channel(StopSource& stop) {
  if (listener_) return listener_->accept(stop);
  const std::string description = to_string(address_);
  if (child_ && !filter_.empty()) return make_filter_channel(std::move(child_), stop, filter_, description);
  if (child_) return make_exec_channel(std::move(child_), stop, description);
  if (!fd_) return plan_error(fmt::format("{} gives one channel only", description));
  MD_TRY(const DescriptorKind kind, kind_of(fd_.get()));
  return std::make_unique<DescriptorChannel>(std::move(fd_), kind, stop, description);
}

Result<MappedFile> IncomingTarget::take_file(StopSource& stop) {
  if (!pages_) return plan_error(fmt::format("{} gives one channel only", to_string(address_)));
  return make_mapped_file(std::move(fd_), std::move(pages_), direct_, stop, to_string(address_));
}

Result<IncomingTarget> open_incoming(const Address& address, FdSource& descriptors, const ListenOptions& options) {
  IncomingTarget out(address);
  if (const auto* rdma = std::get_if<RdmaAddress>(&address)) {
    if (options.rdma == nullptr)
      return plan_error(fmt::format("{} cannot carry a recovery: give another kind of address", to_string(address)));
    MD_TRY(out.rdma_, options.rdma->listen(rdma->inet));
    return out;
  }
  if (const auto* fd = std::get_if<FdAddress>(&address)) {
    MD_TRY(out.fd_, take_descriptor(fd->name, descriptors, options.inherited_fds));
    auto kind = kind_of(out.fd_.get());
    if (!kind) return std::move(kind).error().with(to_string(address));
    if (*kind == DescriptorKind::socket) tune_socket(out.fd_.get(), false);
  } else if (const auto* file = std::get_if<FileAddress>(&address)) {
    MD_TRY(OpenedFile opened, open_file(*file, descriptors, options.pages));
    out.fd_ = std::move(opened.fd);
    out.pages_ = std::move(opened.pages);
    out.direct_ = options.pages == PageAccess::direct;
    if (!options.filter.empty()) {
      out.filter_ = options.filter[0];
      MD_TRY(out.child_, start_filter(options.filter, std::move(out.fd_)));
    }
  } else if (const auto* exec = std::get_if<ExecAddress>(&address)) {
    if (!options.allow_exec) return plan_error("exec: is switched off in this daemon (--allow-exec=on allows it)");
    MD_TRY(out.child_, ExecChild::start(exec->argv));
  } else {
    ListenerBuilder builder(options.backlog);
    MD_TRY(Listener listener, builder.listen(address));
    out.listener_.emplace(std::move(listener));
  }
  return out;
}

}  // namespace migrationd::transports
