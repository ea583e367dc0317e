// SPDX-License-Identifier: Apache-2.0
#include "transports/connect.hpp"

#include "transports/descriptor_channel.hpp"
#include "transports/exec_child.hpp"
#include "transports/open_file.hpp"
#include "transports/socket_address.hpp"

#include <fmt/format.h>
#include <poll.h>

#include <chrono>
#include <utility>

namespace migrationd::transports {

namespace {

using namespace std::chrono_literals;

// A unix listener whose queue is full answers EAGAIN and cannot be polled for room.
constexpr auto full_queue_pause = 10ms;

Result<void> await_connection(int fd, const StopSource& stop) {
  pollfd polled[2] = {{fd, POLLOUT, 0}, {stop.fd(), POLLIN, 0}};
  while (true) {
    const int ready = ::poll(polled, 2, -1);
    if (stop.requested()) return cancelled_error();
    if (ready < 0 && errno != EINTR) return Error::from_errno("wait for the connection");
    if (ready > 0) break;
  }
  int failure = 0;
  socklen_t size = sizeof failure;
  if (::getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size) != 0) failure = errno;
  if (failure != 0) return Error::from_errno("connect", failure);
  return {};
}

Result<void> connect_one(int fd, const SocketAddress& to, StopSource& stop) {
  while (true) {
    if (stop.requested()) return cancelled_error();
    if (::connect(fd, to.get(), to.length) == 0) return {};
    switch (errno) {
      case EINPROGRESS:
        return await_connection(fd, stop);
      case EAGAIN:
        if (to.family() != AF_UNIX) return Error::from_errno("connect");
        if (!stop.sleep_for(full_queue_pause)) return cancelled_error();
        break;
      case EINTR:
        break;
      default:
        return Error::from_errno("connect");
    }
  }
}

Result<std::vector<SocketAddress>> candidates(const Address& address, StopSource& stop) {
  if (const auto* inet = std::get_if<InetAddress>(&address)) return resolve(*inet, {.stop = &stop});
  std::vector<SocketAddress> out(1);
  if (const auto* local = std::get_if<UnixAddress>(&address)) {
    MD_TRY(out[0], unix_socket_address(*local));
  } else {
    MD_TRY(out[0], vsock_socket_address(std::get<VsockAddress>(address)));
  }
  return out;
}

// Tries every address; the last failure is the one told.
Result<UniqueFd> connect_socket(const Address& address, StopSource& stop) {
  const auto* inet = std::get_if<InetAddress>(&address);
  MD_TRY(const auto places, candidates(address, stop));
  Error last;
  for (const SocketAddress& place : places) {
    auto fd = make_socket(place.family(), inet != nullptr && inet->mptcp);
    if (!fd) {
      last = fd.error();
      continue;
    }
    tune_socket(fd->get(), inet != nullptr && inet->keep_alive);
    auto connected = connect_one(fd->get(), place, stop);
    if (connected) {
      tune_connection(fd->get());
      return std::move(*fd);
    }
    if (connected.error().is_cancelled()) return connected.error();
    last =
        Error::from_errno(fmt::format("Failed to connect to '{}'", peer_text(address)), connected.error().sys_errno());
  }
  return last;
}

Error already_used(const Address& address) {
  return plan_error(fmt::format("{} gives one channel only", to_string(address)));
}

}  // namespace

Result<UniqueFd> connect_unix(const UnixAddress& address) {
  MD_TRY(const SocketAddress place, unix_socket_address(address));
  MD_TRY(UniqueFd fd, make_socket(AF_UNIX));
  while (::connect(fd.get(), place.get(), place.length) != 0) {
    if (errno == EINTR) continue;
    return Error::from_errno(fmt::format("Failed to connect to '{}'", peer_text(address)));
  }
  return fd;
}

OutgoingTarget::OutgoingTarget(Address address) : address_(std::move(address)) {}
OutgoingTarget::OutgoingTarget(OutgoingTarget&&) noexcept = default;
OutgoingTarget& OutgoingTarget::operator=(OutgoingTarget&&) noexcept = default;
OutgoingTarget::~OutgoingTarget() = default;

bool OutgoingTarget::is_socket_address() const noexcept {
  return std::holds_alternative<InetAddress>(address_) || std::holds_alternative<UnixAddress>(address_) ||
         std::holds_alternative<VsockAddress>(address_);
}

Result<std::unique_ptr<Channel>> OutgoingTarget::connect(StopSource& stop) {
  const std::string description = to_string(address_);
  if (is_socket_address()) {
    MD_TRY(UniqueFd fd, connect_socket(address_, stop));
    return std::make_unique<DescriptorChannel>(std::move(fd), DescriptorKind::socket, stop, description);
  }
  if (const auto* exec = std::get_if<ExecAddress>(&address_)) {
    if (std::exchange(start_late_, false)) {
      MD_TRY(child_, ExecChild::start(exec->argv));
    }
    if (!child_) return already_used(address_);
    return make_exec_channel(std::move(child_), stop, description);
  }
  if (!fd_) return already_used(address_);
  MD_TRY(const DescriptorKind kind, kind_of(fd_.get()));
  auto channel = std::make_unique<DescriptorChannel>(std::move(fd_), kind, stop, description);
  channel->set_directory(std::move(directory_));
  return channel;
}

Result<MappedFile> OutgoingTarget::take_file(StopSource& stop) {
  if (!pages_) return already_used(address_);
  MD_TRY(MappedFile file, make_mapped_file(std::move(fd_), std::move(pages_), direct_, stop, to_string(address_)));
  file.stream->set_directory(std::move(directory_));
  file.stream->write_mark_last();
  return file;
}

Result<OutgoingTarget> prepare_outgoing(const Address& address, FdSource& descriptors, const ConnectOptions& options) {
  OutgoingTarget out(address);
  if (std::holds_alternative<RdmaAddress>(address)) {
    if (options.rdma == nullptr)
      return plan_error(fmt::format("{} cannot carry a recovery: give another kind of address", to_string(address)));
    out.rdma_ = options.rdma;
  }
  if (const auto* fd = std::get_if<FdAddress>(&address)) {
    MD_TRY(out.fd_, descriptors.take_named(fd->name));
    auto kind = kind_of(out.fd_.get());
    if (!kind) return std::move(kind).error().with(to_string(address));
    if (*kind == DescriptorKind::socket) tune_socket(out.fd_.get(), false);
    out.is_file_ = *kind == DescriptorKind::file;
  }
  if (const auto* file = std::get_if<FileAddress>(&address)) {
    MD_TRY(CreatedFile made, create_file(*file, descriptors, options.pages));
    out.fd_ = std::move(made.fd);
    out.pages_ = std::move(made.pages);
    out.direct_ = options.pages == PageAccess::direct;
    out.directory_ = std::move(made.directory);
    out.is_file_ = true;
  }
  if (const auto* exec = std::get_if<ExecAddress>(&address)) {
    if (!options.allow_exec) return plan_error("exec: is switched off in this daemon (--allow-exec=on allows it)");
    if (options.start_late) {
      out.start_late_ = true;
    } else {
      MD_TRY(out.child_, ExecChild::start(exec->argv));
    }
  }
  return out;
}

}  // namespace migrationd::transports
