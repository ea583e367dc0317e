// SPDX-License-Identifier: Apache-2.0
//
// Connection: one client of a control socket, as bytes and descriptors.
//
// Descriptors and bytes. A client may pass descriptors (SCM_RIGHTS) with any byte, and they count from exactly that
// byte on (qmp.md 1 and 7). One recvmsg() may return bytes that were sent before the descriptors together with
// those that carried them, without saying where the border is. QEMU reads one byte at a time. Here each read is
// preceded by a peek without room for control data: the kernel then says MSG_CTRUNC when descriptors come within
// or right behind the peeked bytes, and only then is read byte by byte up to them (a peek of fewer bytes does not
// find the border: it looks behind its end). So every batch arrives with its first byte at the start of a chunk.
//
// Output never blocks the daemon: lines that the socket does not take are kept up to limits::qmp_unread_output,
// then the client is given up.
//
// Thread: control. The listener is called from the loop, never from within a call of this class's members.
#pragma once

#include "base/unique_fd.hpp"
#include "daemon/control/event_loop.hpp"

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::control {

class ConnectionListener {
 public:
  virtual ~ConnectionListener() = default;
  // `fds` (close-on-exec, blocking) came with the first of `bytes`. `bytes` is never empty. No more input follows
  // until the next read().
  virtual void on_input(std::string_view bytes, std::vector<UniqueFd> fds) = 0;
  // The client will send no more; it may still read.
  virtual void on_end_of_input() = 0;
  // Nothing can be read or written any more, or everything was written after close_when_written().
  virtual void on_closed(std::string_view why) = 0;
};

// What a read may return. Descriptors are held back while commands that came before them wait: those shall not
// find the descriptors of a later command.
enum class Reading { bytes_only, anything };

class Connection {
 public:
  // `socket`: a connected, non-blocking stream socket.
  Connection(EventLoop& loop, UniqueFd socket, ConnectionListener& listener);
  ~Connection();

  // Asks for one on_input (or end, or closed). A second call before it only changes what may come.
  void read(Reading what);
  void stop_reading() noexcept { reading_ = false; }
  // Queues `line`, which must hold its own line end.
  void send(std::string line);
  // on_closed once all output is written; no more input.
  void close_when_written();
  bool is_closed() const noexcept { return closed_; }
  // Writes what is queued, without the loop, waiting for the client until `deadline`; for the last reply of a process
  // that ends.
  void flush_until(std::chrono::steady_clock::time_point deadline) noexcept;
  std::size_t unread_output() const noexcept { return queued_bytes_; }

 private:
  // The byte that carried descriptors, read but not delivered yet.
  struct Held {
    char byte = 0;
    std::vector<UniqueFd> fds;
  };

  void on_readable();
  void read_up_to_fds(std::size_t count);
  void deliver_held();
  void arm_read();
  void flush() noexcept;
  void arm_write();
  void give_up(std::string why);
  void finish_if_written();

  EventLoop& loop_;
  UniqueFd socket_;
  ConnectionListener& listener_;
  std::unique_ptr<FdWatch> watch_;
  std::optional<Held> held_;
  std::deque<std::string> queue_;
  std::size_t sent_of_front_ = 0;
  std::size_t queued_bytes_ = 0;
  Reading what_ = Reading::anything;
  bool reading_ = false;
  bool read_armed_ = false;
  bool write_armed_ = false;
  bool ended_ = false;
  bool closing_ = false;
  bool closed_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace migrationd::control
