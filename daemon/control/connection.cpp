// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/connection.hpp"

#include "base/limits.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

namespace migrationd::control {
namespace {

constexpr std::size_t chunk_bytes = std::size_t{16} << 10;
using Chunk = std::array<char, chunk_bytes>;

struct Peek {
  ssize_t count = 0;  // as recvmsg() returns it
  bool fds = false;   // descriptors come with one of the bytes
};

Peek peek(int socket, Chunk& buffer, std::size_t length) {
  iovec where{buffer.data(), length};
  msghdr message{};
  message.msg_iov = &where;
  message.msg_iovlen = 1;
  const ssize_t count = ::recvmsg(socket, &message, MSG_PEEK | MSG_DONTWAIT);
  return {count, count > 0 && (message.msg_flags & MSG_CTRUNC) != 0};
}

void take_fds(const msghdr& message, std::vector<UniqueFd>& fds) {
  for (const cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(const_cast<msghdr*>(&message), const_cast<cmsghdr*>(header))) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      fds.emplace_back(fd);
      // As QEMU does: who passes a descriptor gives its open file away, blocking.
      const int flags = ::fcntl(fd, F_GETFL);
      if (flags >= 0 && (flags & O_NONBLOCK) != 0) ::fcntl(fd, F_SETFL, flags & ~O_NONBLOCK);
    }
  }
}

ssize_t receive(int socket, Chunk& buffer, std::size_t length, std::vector<UniqueFd>& fds) {
  alignas(cmsghdr) std::array<char, CMSG_SPACE(limits::fds_per_message * sizeof(int))> control{};
  iovec where{buffer.data(), length};
  msghdr message{};
  message.msg_iov = &where;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  // What does not fit into the control buffer is closed by the kernel.
  const ssize_t count = ::recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (count > 0) take_fds(message, fds);
  return count;
}

bool try_again(int err) { return err == EAGAIN || err == EINTR; }

}  // namespace

Connection::Connection(EventLoop& loop, UniqueFd socket, ConnectionListener& listener)
    : loop_(loop), socket_(std::move(socket)), listener_(listener), watch_(loop.watch(socket_.get())) {
  if (!watch_) give_up("cannot be polled");
}

Connection::~Connection() { *alive_ = false; }

void Connection::read(Reading what) {
  what_ = what;
  reading_ = true;
  arm_read();
}

void Connection::arm_read() {
  if (read_armed_ || closed_ || !reading_) return;
  if (held_ && what_ == Reading::bytes_only) return;
  if (!held_ && ended_) return;
  read_armed_ = true;
  auto call = [this] {
    read_armed_ = false;
    on_readable();
  };
  if (!held_) return watch_->when_readable(std::move(call));
  loop_.post([call = std::move(call), alive = alive_] {
    if (*alive) call();
  });
}

void Connection::on_readable() {
  if (!reading_ || closed_) return;
  if (held_) {
    if (what_ == Reading::anything) deliver_held();
    return;
  }
  Chunk buffer;
  const Peek ahead = peek(socket_.get(), buffer, buffer.size());
  if (ahead.count < 0) {
    if (try_again(errno)) return arm_read();
    return give_up(std::strerror(errno));
  }
  if (ahead.count == 0) {
    ended_ = true;
    reading_ = false;
    return listener_.on_end_of_input();
  }
  const auto count = static_cast<std::size_t>(ahead.count);
  if (ahead.fds) return read_up_to_fds(count);
  std::vector<UniqueFd> none;
  const ssize_t got = receive(socket_.get(), buffer, count, none);
  if (got <= 0) return give_up("the bytes seen are gone");
  reading_ = false;
  listener_.on_input({buffer.data(), static_cast<std::size_t>(got)}, {});
}

// Descriptors come with one of the next `count` bytes, or right behind them.
void Connection::read_up_to_fds(std::size_t count) {
  Chunk byte;
  std::string before;
  while (before.size() < count) {
    Held held;
    if (receive(socket_.get(), byte, 1, held.fds) <= 0) return give_up("the bytes seen are gone");
    if (!held.fds.empty()) {
      held.byte = byte.front();
      held_ = std::move(held);
      break;
    }
    before.push_back(byte.front());
  }
  if (before.empty()) {
    // Held back until read(Reading::anything): the commands ahead shall not find them.
    if (what_ == Reading::anything) deliver_held();
    return;
  }
  reading_ = false;
  listener_.on_input(before, {});
}

void Connection::deliver_held() {
  Held held = std::move(*held_);
  held_.reset();
  reading_ = false;
  listener_.on_input({&held.byte, 1}, std::move(held.fds));
}

void Connection::send(std::string line) {
  if (closed_) return;
  queued_bytes_ += line.size();
  queue_.push_back(std::move(line));
  if (write_armed_) {
    if (queued_bytes_ > limits::qmp_unread_output) give_up("does not read its replies");
    return;
  }
  flush();
  if (queued_bytes_ > limits::qmp_unread_output) return give_up("does not read its replies");
  if (!queue_.empty()) arm_write();
}

void Connection::flush() noexcept {
  while (!queue_.empty() && !closed_) {
    const auto& front = queue_.front();
    const ssize_t count = ::send(socket_.get(), front.data() + sent_of_front_, front.size() - sent_of_front_,
                                 MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0) {
      if (errno == EINTR) continue;
      if (errno != EAGAIN) give_up(std::strerror(errno));
      return;
    }
    sent_of_front_ += static_cast<std::size_t>(count);
    queued_bytes_ -= static_cast<std::size_t>(count);
    if (sent_of_front_ < front.size()) continue;
    queue_.pop_front();
    sent_of_front_ = 0;
  }
}

void Connection::flush_until(std::chrono::steady_clock::time_point deadline) noexcept {
  for (flush(); !queue_.empty() && !closed_; flush()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0) return;
    pollfd writable{socket_.get(), POLLOUT, 0};
    if (::poll(&writable, 1, static_cast<int>(left.count())) <= 0) return;
  }
}

void Connection::arm_write() {
  if (write_armed_ || closed_) return;
  write_armed_ = true;
  watch_->when_writable([this] {
    write_armed_ = false;
    flush();
    if (!queue_.empty()) return arm_write();
    finish_if_written();
  });
}

void Connection::close_when_written() {
  closing_ = true;
  reading_ = false;
  finish_if_written();
}

void Connection::finish_if_written() {
  if (closing_ && queue_.empty()) give_up("done");
}

// The listener may be in the middle of a call of ours, so it hears of the end from the loop.
void Connection::give_up(std::string why) {
  if (closed_) return;
  closed_ = true;
  reading_ = false;
  queue_.clear();
  queued_bytes_ = 0;
  sent_of_front_ = 0;
  loop_.post([this, alive = alive_, why = std::move(why)] {
    if (*alive) listener_.on_closed(why);
  });
}

}  // namespace migrationd::control
