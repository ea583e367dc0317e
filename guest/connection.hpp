// SPDX-License-Identifier: Apache-2.0
//
// Connection: the guest's end of the protocol. Both sides ask; each has one request under way at most.
//
// Whoever waits reads. There is no thread whose only work is to receive: a call that waits for its reply takes packets
// from the socket while nobody else does, keeps what is meant for others, and wakes them. So a callback may ask the
// daemon something, and a thread may ask while a callback waits for that very thread.
//
// Thread: any; next() is called by one at a time. Errors: ErrorKind::machine is the daemon's refusal, after which the
// connection goes on; every other error is its end.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "guest/wire.hpp"

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <span>

namespace migrationd::guest {

class Connection {
 public:
  // `loop_fd`: a descriptor is made for a program's own loop.
  static Result<std::unique_ptr<Connection>> make(UniqueFd socket, bool with_loop_fd);

  // Sends a request and waits for its reply, daemon_wait at most.
  Result<Packet> request(Type type, ByteView body, std::span<const int> fds = {});
  Result<void> notify(Type type, ByteView body);
  // The answer to a request that next() gave.
  Result<void> answer(const Packet& to, ByteView body, std::span<const int> fds = {});
  Result<void> refuse(const Packet& to, std::string why);

  // The daemon's next request or notice. None: nothing is there, and `wait` is false.
  Result<std::optional<Packet>> next(bool wait);

  // Ends it; everybody who waits is told.
  void hang_up();
  // In a forked child: closes its copies of the descriptors, and the parent goes on.
  void leave() noexcept;
  bool is_open() const;
  // Readable when next() has something. -1 without a loop.
  int loop_fd() const noexcept { return loop_.get(); }

 private:
  using Clock = std::chrono::steady_clock;
  using Deadline = std::optional<Clock::time_point>;

  explicit Connection(UniqueFd socket) noexcept : socket_(std::move(socket)) {}
  Result<void> make_loop();
  template <class Ready>
  Result<bool> wait_until(std::unique_lock<std::mutex>& lock, Deadline deadline, Ready ready);
  // Whether a packet came.
  bool read_once(std::unique_lock<std::mutex>& lock, Deadline deadline);
  void deliver(Packet packet);
  void deliver_reply(Packet packet);
  void end(Error why);
  Result<void> send(const Header& header, ByteView body, std::span<const int> fds);
  Result<void> send_or_end(const Header& header, ByteView body, std::span<const int> fds);
  void request_done();

  UniqueFd socket_;
  UniqueFd loop_;    // epoll over the socket and wakeup_
  UniqueFd wakeup_;  // eventfd: something was kept for next()

  std::mutex asking_;  // one request at a time
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool is_reading_ = false;
  std::optional<Error> end_;
  std::deque<Packet> kept_;              // for next()
  std::optional<std::uint32_t> theirs_;  // serial of the daemon's request under way
  std::uint32_t last_of_theirs_ = 0;
  std::uint32_t serial_ = 0;       // of our last request
  std::optional<Header> awaited_;  // of our request under way
  std::optional<Packet> reply_;
};

}  // namespace migrationd::guest
