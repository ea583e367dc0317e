// SPDX-License-Identifier: Apache-2.0
//
// From an address to incoming channels (file-and-channels.md 7.1, qmp.md 9.3). open_incoming() does everything
// that must be done before the `migrate-incoming` command answers: after it, a source can connect. tcp, unix and
// vsock give a Listener; fd, exec and file give exactly one channel that is there already.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "transports/address.hpp"
#include "transports/channel.hpp"
#include "transports/fd_source.hpp"
#include "transports/file_channel.hpp"
#include "transports/open_file.hpp"
#include "transports/rdma_link.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::transports {

class ExecChild;

struct ListenOptions {
  bool allow_exec = true;
  // Connections the kernel keeps for us: the number of channels a source opens at once (multifd: N, else 1).
  int backlog = 1;
  // Descriptors the process was started with; `fd:NUMBER` may name only these (0, 1 and 2 never). Each is
  // used once: the caller removes it after success.
  std::vector<int> inherited_fds{};
  // file: only: other than none, the target gives a file (take_file) in place of a channel.
  PageAccess pages = PageAccess::none;
  // file: only: a program with its arguments that the file goes through, from the offset on.
  std::vector<std::string> filter{};
  // rdma: only: what listens. It outlives the target.
  RdmaFabric* rdma = nullptr;
};

// One address can mean several sockets (a name with IPv4 and IPv6 addresses). Thread: one owner at a time.
class Listener {
 public:
  Listener(Listener&& other) noexcept;
  Listener& operator=(Listener&&) = delete;
  // Closes; removes the unix path if it is still ours.
  ~Listener();

  // Readable when accept_ready() would give a channel. Poll only; it may be an epoll descriptor.
  int fd() const noexcept { return sockets_.size() == 1 ? sockets_.front().get() : any_.get(); }
  // Waits for a connection or the stop. A peer that is gone again is passed over.
  Result<std::unique_ptr<Channel>> accept(StopSource& stop);
  // Never waits; null when nobody is there. The channel's waits end with `stop`, which outlives it.
  Result<std::unique_ptr<Channel>> accept_ready(StopSource& stop);

  // Where a source can connect, with real port numbers, for `socket-address`: InetAddress (ipv4 or ipv6 is set
  // to true by family), UnixAddress, VsockAddress.
  const std::vector<Address>& bound_addresses() const noexcept { return bound_; }

 private:
  friend class ListenerBuilder;
  Listener() = default;

  struct OwnedPath {
    std::string path;
    std::uint64_t device = 0;
    std::uint64_t inode = 0;
  };

  std::vector<UniqueFd> sockets_;
  UniqueFd any_;
  std::vector<Address> bound_;
  std::optional<OwnedPath> path_;
  std::string described_;  // the address asked for; unix peers have no name of their own
  bool keep_alive_ = false;
};

class IncomingTarget {
 public:
  IncomingTarget(IncomingTarget&&) noexcept;
  IncomingTarget& operator=(IncomingTarget&&) = delete;
  ~IncomingTarget();

  // rdma: what sources connect to, for who knows how (null: another kind of address). It gives no channel by itself.
  RdmaListener* rdma() noexcept { return rdma_.get(); }
  // Null for fd, exec, file and rdma.
  Listener* listener() noexcept { return listener_ ? &*listener_ : nullptr; }
  // fd, exec, file: the channel, once. With a listener: accept().
  Result<std::unique_ptr<Channel>> take_channel(StopSource& stop);
  // A file opened with pages, once.
  Result<MappedFile> take_file(StopSource& stop);
  const Address& address() const noexcept { return address_; }

 private:
  friend Result<IncomingTarget> open_incoming(const Address&, FdSource&, const ListenOptions&);
  explicit IncomingTarget(Address address);

  Address address_;
  std::optional<Listener> listener_;
  UniqueFd fd_;
  UniqueFd pages_;  // file: with pages
  bool direct_ = false;
  std::unique_ptr<ExecChild> child_;
  std::unique_ptr<RdmaListener> rdma_;
  std::string filter_;  // file: with a filter: its name
};

// Errors: "Failed to bind socket: ...", "Could not open 'x': No such file or directory", ... Names are resolved
// here, on the caller's thread: listening addresses are the host's own and numeric or in its hosts file.
// A unix path that is a socket nobody accepts on, or anyone's socket, is replaced as QEMU does; anything else
// at the path is an error. Thread: control.
Result<IncomingTarget> open_incoming(const Address& address, FdSource& descriptors, const ListenOptions& options);

}  // namespace migrationd::transports
