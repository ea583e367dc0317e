// SPDX-License-Identifier: Apache-2.0
//
// Channel: an ordered stream of bytes to or from a migration peer.
//
// Contract
//   * Blocking. Each direction has one owner thread: one thread writes, one (perhaps another) reads.
//   * Every wait polls the migration's stop beside the descriptor; once the stop is raised, read and write
//     fail with ErrorKind::cancelled. shutdown() is the one member any thread may call; it wakes both
//     directions of a socket, and does nothing useful for pipes and files (that is what the stop is for).
//   * Non-blocking behaviour is asked per call (MSG_DONTWAIT, RWF_NOWAIT) or by poll; the descriptor's own
//     O_NONBLOCK is never changed, because others may share the open file description.
//   * Errors are ErrorKind::io with QEMU's wording where qmp.md section 11 gives one ("Unable to write to
//     socket: Broken pipe", "Unable to read from socket: Connection reset by peer"), else ErrorKind::cancelled.
//   * No feature bits: what can seek is a PositionalFile, not a Channel.
//
// SIGPIPE must be ignored by the process.
#pragma once

#include "base/result.hpp"

#include <sys/uio.h>

#include <cstddef>
#include <span>
#include <string>

namespace migrationd::transports {

class Channel {
 public:
  Channel() = default;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  virtual ~Channel() = default;

  // Reads at least one byte into the buffers, in order; 0 means the peer ended the stream. `into` holds at
  // most IOV_MAX entries and at least one byte.
  virtual Result<std::size_t> read(std::span<const iovec> into) = 0;
  // Writes everything, however often the kernel takes less. `from` may hold any number of entries.
  virtual Result<void> write(std::span<const iovec> from) = 0;
  // Ends both directions. Any thread; idempotent.
  virtual void shutdown() noexcept = 0;
  // Ends the writing direction and delivers what was written: a socket's FIN, a pipe's close; for exec: the
  // child is waited for (bounded by the stop); for files nothing (sync_to_disk does that). Writer thread, once.
  virtual Result<void> finish_writing() = 0;
  // True when the peer can answer on the same channel (sockets; exec: with both pipes).
  virtual bool bidirectional() const noexcept = 0;
  // True when the bytes end in a file of ours (file:, fd: of a regular file): no peer, the machine stays here.
  virtual bool is_file() const noexcept = 0;
  // Data (and the directory entry, where we made the file) on stable storage; a no-op for anything else.
  virtual Result<void> sync_to_disk() = 0;
  // The peer or target for logs: "tcp:127.0.0.1:4444", "unix:/run/a.sock", "file:/save". Printable.
  virtual std::string describe() const = 0;
  // A descriptor to poll(2) for read readiness (data or the end); -1 when reading never blocks (files).
  virtual int readable_fd() const noexcept = 0;
};

}  // namespace migrationd::transports
