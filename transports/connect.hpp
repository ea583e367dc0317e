// SPDX-License-Identifier: Apache-2.0
//
// From an address to an outgoing channel, in the two steps QEMU takes (file-and-channels.md 7.2, qmp.md 9.2):
//
//   1. prepare_outgoing() runs inside the `migrate` command. It opens the file, takes the named descriptor or
//      starts the command, so that those failures are the command's error.
//   2. OutgoingTarget::connect() runs on the mover. It resolves names and connects, so that those failures end
//      the migration ("Failed to connect to '127.0.0.1:1': Connection refused").
//
// Which address kinds suit which capabilities (section 6) is the plan's business, not ours.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "transports/address.hpp"
#include "transports/channel.hpp"
#include "transports/fd_source.hpp"
#include "transports/file_channel.hpp"
#include "transports/open_file.hpp"

#include <chrono>
#include <memory>

namespace migrationd::transports {

class ExecChild;
class RdmaFabric;

struct ConnectOptions {
  // exec: starts programs with the daemon's rights; the packaged unit switches it off.
  bool allow_exec = true;
  // file: only: other than none, the target gives a file (take_file) in place of a channel.
  PageAccess pages = PageAccess::none;
  // exec: only: the program is started by connect(), because what it talks to is not there yet.
  bool start_late = false;
  // rdma: only: what connects. It outlives the target.
  RdmaFabric* rdma = nullptr;
};

// A UNIX socket that is connected at once or not at all: a peer whose queue is full is not waited for.
Result<UniqueFd> connect_unix(const UnixAddress& address);

class OutgoingTarget {
 public:
  OutgoingTarget(OutgoingTarget&&) noexcept;
  OutgoingTarget& operator=(OutgoingTarget&&) noexcept;
  // A prepared file is closed, a started command ended and waited for.
  ~OutgoingTarget();

  // The channel; blocks until there is one, an error, or the stop. tcp, unix and vsock may be asked again, from
  // any one thread at a time, for further connections to the same place; fd, exec and file give one channel.
  // `stop` outlives the channel. Thread: the mover.
  Result<std::unique_ptr<Channel>> connect(StopSource& stop);
  // A file prepared with pages, once. Its first bytes are written last (FileChannel).
  Result<MappedFile> take_file(StopSource& stop);

  // rdma: what to connect with, for who knows how (null: another kind of address). It gives no channel by itself.
  RdmaFabric* rdma() const noexcept { return rdma_; }

  // True for file: and for fd: of a regular file: the bytes end in a file, the machine stays here.
  bool is_file() const noexcept { return is_file_; }
  // True when connect() can give more than one channel.
  bool is_socket_address() const noexcept;
  const Address& address() const noexcept { return address_; }

 private:
  friend Result<OutgoingTarget> prepare_outgoing(const Address&, FdSource&, const ConnectOptions&);
  explicit OutgoingTarget(Address address);

  Address address_;
  UniqueFd fd_;         // fd: and file:
  UniqueFd directory_;  // of a file we made
  UniqueFd pages_;      // file: with pages
  bool direct_ = false;
  bool start_late_ = false;           // exec:
  std::unique_ptr<ExecChild> child_;  // exec:
  RdmaFabric* rdma_ = nullptr;
  bool is_file_ = false;
};

// Errors: those of the command (file-and-channels.md 5.1). rdma: without a fabric is refused.
// A file is made with mode 0600 and cut (or grown) to its offset; nothing before the offset is touched. A
// descriptor from a set is duplicated, cut to the offset in the same way, and starts at its own position when
// the offset is 0 (4.3); fd: starts at its position and is never cut. Thread: control.
Result<OutgoingTarget> prepare_outgoing(const Address& address, FdSource& descriptors, const ConnectOptions& options);

}  // namespace migrationd::transports
