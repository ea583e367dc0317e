// SPDX-License-Identifier: Apache-2.0
//
// ZeroCopyWriter: writes to a socket without copying into the kernel (MSG_ZEROCOPY; multifd.md section 10).
//
// What was written so is still referred to after write() has returned: the network card, or a retransmission, reads it
// when its time comes. The kernel says on the socket's error queue what it is done with. settle() waits for all of it.
//
// Three things are otherwise than with an ordinary write:
//   * The pages are locked while they are under way, and count against the process's RLIMIT_MEMLOCK unless it may pass
//     that. check_locked_memory() is for the start; if the limit is met later (it is the user's, not the process's),
//     that piece is copied.
//   * Where nothing is saved the kernel copies after all, over loopback always: at the far end the bytes lie in a queue
//     that nobody bounds. It says so, and settle() passes it on.
//   * The error queue makes poll(2) say POLLERR. All writing to the socket therefore goes through this object.
//
// Thread: the channel's writer.
#pragma once

#include "base/stop.hpp"
#include "transports/channel.hpp"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace migrationd::transports {

class ZeroCopyWriter {
 public:
  // `channel` is over a socket and outlives the writer, as `stop` does. Error: the kernel or the socket's family cannot
  // do it, in QEMU's words.
  static Result<std::unique_ptr<ZeroCopyWriter>> make(Channel& channel, const StopSource& stop);

  // `head` is copied, `body` is not. Blocks as Channel::write does, with its errors.
  Result<void> write(std::span<const iovec> head, std::span<const iovec> body);

  enum class Outcome : std::uint8_t { nothing_sent, avoided, copied };
  // Waits until the kernel is done with everything. What became of it since the last time: `copied` when no piece went
  // without a copy.
  Result<Outcome> settle();

 private:
  ZeroCopyWriter(int fd, const StopSource& stop) noexcept : fd_(fd), stop_(stop) {}

  Result<void> send(std::span<const iovec> pieces, int flags);
  Result<bool> take_notifications();
  Result<void> wait(short events, int timeout_ms);
  Result<void> check_socket() const;

  const int fd_;
  const StopSource& stop_;
  std::uint32_t sent_ = 0;     // pieces under zero copy, as the kernel counts them
  std::uint32_t settled_ = 0;  // of them
  // Since the last settle().
  bool any_ = false;
  bool avoided_ = false;
  std::vector<iovec> rest_;
};

// Room for `bytes` to be locked at once. Error: in QEMU's words.
Result<void> check_locked_memory(std::uint64_t bytes);

}  // namespace migrationd::transports
