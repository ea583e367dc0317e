// SPDX-License-Identifier: Apache-2.0
#include "guest/connection.hpp"

#include <fmt/format.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <utility>

namespace migrationd::guest {

namespace {

// Notices that wait for the end of a callback; throttling, the only frequent one, takes one place.
constexpr std::size_t most_kept = 64;

bool is_daemons(std::uint16_t type) noexcept { return type >= static_cast<std::uint16_t>(Type::stop); }
bool is_throttle(const Packet& packet) noexcept {
  return packet.header.type == static_cast<std::uint16_t>(Type::throttle);
}

std::string refusal_text(const Packet& packet) {
  auto body = decode<Refusal>(packet.body);
  return body ? body->why : body.error().text();
}

}  // namespace

Result<std::unique_ptr<Connection>> Connection::make(UniqueFd socket, bool with_loop_fd) {
  std::unique_ptr<Connection> made(new Connection(std::move(socket)));
  if (with_loop_fd) MD_CHECK(made->make_loop());
  return made;
}

Result<void> Connection::make_loop() {
  loop_.reset(::epoll_create1(EPOLL_CLOEXEC));
  wakeup_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  epoll_event readable{};
  readable.events = EPOLLIN;
  if (!loop_ || !wakeup_ || ::epoll_ctl(loop_.get(), EPOLL_CTL_ADD, socket_.get(), &readable) != 0 ||
      ::epoll_ctl(loop_.get(), EPOLL_CTL_ADD, wakeup_.get(), &readable) != 0) {
    return Error::from_errno("make a descriptor for the program's loop");
  }
  return {};
}

// Reads the socket while nobody else does, until `ready()`; false when the deadline passed.
template <class Ready>
Result<bool> Connection::wait_until(std::unique_lock<std::mutex>& lock, Deadline deadline, Ready ready) {
  while (!ready()) {
    if (end_) return *end_;
    if (deadline && Clock::now() >= *deadline) return false;
    if (!is_reading_) {
      read_once(lock, deadline);
    } else if (deadline) {
      changed_.wait_until(lock, *deadline);
    } else {
      changed_.wait(lock);
    }
  }
  return true;
}

bool Connection::read_once(std::unique_lock<std::mutex>& lock, Deadline deadline) {
  using std::chrono::milliseconds;
  const milliseconds wait = deadline ? std::chrono::ceil<milliseconds>(*deadline - Clock::now()) : milliseconds(-1);
  is_reading_ = true;
  lock.unlock();
  auto packet = receive_packet(socket_.get(), deadline ? std::max(wait, milliseconds(0)) : wait);
  lock.lock();
  is_reading_ = false;
  const bool came = packet && packet->has_value();
  if (!packet) {
    end(std::move(packet).error());
  } else if (came) {
    deliver(std::move(**packet));
  }
  changed_.notify_all();
  return came;
}

void Connection::deliver(Packet packet) {
  const Header header = packet.header;
  if (header.is_reply()) return deliver_reply(std::move(packet));
  const auto fault = [&](const char* why) { end(wire_error(fmt::format("{}: {}", name_of(header.type), why))); };
  if (!is_daemons(header.type)) return fault("is no message of a daemon");
  if (!is_notice(header.type)) {
    if (theirs_) return fault("came before the last request was answered");
    if (header.serial == last_of_theirs_) return fault("has the serial of the last request");
    theirs_ = last_of_theirs_ = header.serial;
  }
  if (is_throttle(packet) && !kept_.empty() && is_throttle(kept_.back())) kept_.pop_back();
  if (kept_.size() >= most_kept) return fault("too many notices at a time");
  kept_.push_back(std::move(packet));
  if (wakeup_) static_cast<void>(::eventfd_write(wakeup_.get(), 1));
}

void Connection::deliver_reply(Packet packet) {
  const Header header = packet.header;
  const bool is_ours = awaited_ && !reply_ && header.serial == awaited_->serial;
  if (is_ours && (header.type == refusal || header.type == (awaited_->type | reply_bit))) {
    reply_ = std::move(packet);
    return;
  }
  if (header.type == refusal) {
    return end(Error(ErrorKind::peer, "the daemon ended the connection: " + refusal_text(packet)));
  }
  end(wire_error(fmt::format("{}: nobody asked for it", name_of(header.type))));
}

void Connection::end(Error why) {
  if (end_) return;
  if (why.kind() == ErrorKind::wire) {
    // Its sender is told, if it still reads.
    const Bytes farewell = packet(refusal, 0xffffffffU, Refusal{why.text()});
    static_cast<void>(::send(socket_.get(), farewell.data(), farewell.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
  }
  end_ = std::move(why);
  ::shutdown(socket_.get(), SHUT_RDWR);
  changed_.notify_all();
}

Result<void> Connection::send(const Header& header, ByteView body, std::span<const int> fds) {
  ByteWriter out;
  encode_header(header, out);
  out.bytes(body);
  return send_packet(socket_.get(), out.view(), fds);
}

Result<Packet> Connection::request(Type type, ByteView body, std::span<const int> fds) {
  const std::lock_guard<std::mutex> one_at_a_time(asking_);
  std::unique_lock<std::mutex> lock(mutex_);
  if (end_) return *end_;
  if (++serial_ == 0xffffffffU) serial_ = 1;  // the highest is the farewell's
  awaited_ = Header{static_cast<std::uint16_t>(type), serial_};
  reply_.reset();
  lock.unlock();
  const Header asked{static_cast<std::uint16_t>(type), serial_};
  auto sent = send(asked, body, fds);
  lock.lock();
  if (!sent) {
    // A daemon that said no and hung up is still to be heard.
    while (!end_ && !reply_ && !is_reading_ && read_once(lock, Clock::now())) {
    }
    if (!reply_) end(std::move(sent).error());
  }
  auto replied = wait_until(lock, Clock::now() + daemon_wait, [&] { return reply_.has_value(); });
  awaited_.reset();
  if (!replied) return std::move(replied).error();
  if (!*replied) {
    end(Error(ErrorKind::peer,
              fmt::format("{}: no reply from the daemon for {} s", name_of(asked.type), daemon_wait.count())));
    return *end_;
  }
  Packet reply = *std::exchange(reply_, std::nullopt);
  if (reply.header.type == refusal) return machine_error("the daemon refused: " + refusal_text(reply));
  return reply;
}

// What cannot be sent is the connection's end.
Result<void> Connection::send_or_end(const Header& header, ByteView body, std::span<const int> fds) {
  auto sent = send(header, body, fds);
  if (sent) return {};
  const std::lock_guard<std::mutex> lock(mutex_);
  end(sent.error());
  return sent;
}

Result<void> Connection::notify(Type type, ByteView body) {
  return send_or_end({static_cast<std::uint16_t>(type), 0}, body, {});
}

Result<void> Connection::answer(const Packet& to, ByteView body, std::span<const int> fds) {
  request_done();
  return send_or_end({static_cast<std::uint16_t>(to.header.type | reply_bit), to.header.serial}, body, fds);
}

Result<void> Connection::refuse(const Packet& to, std::string why) {
  request_done();
  ByteWriter body;
  encode(Refusal{std::move(why)}, body);
  return send_or_end({refusal, to.header.serial}, body.view(), {});
}

// Before its answer is sent: the next request may be here before this thread goes on.
void Connection::request_done() {
  const std::lock_guard<std::mutex> lock(mutex_);
  theirs_.reset();
}

Result<std::optional<Packet>> Connection::next(bool wait) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto ready = [&] { return !kept_.empty(); };
  if (wait) {
    MD_TRY(const bool waited, wait_until(lock, std::nullopt, ready));
    static_cast<void>(waited);
  } else if (!ready()) {
    if (!is_reading_ && !end_) read_once(lock, Clock::now());
    if (!ready() && end_) return *end_;
  }
  if (!ready()) return std::optional<Packet>{};
  Packet packet = std::move(kept_.front());
  kept_.pop_front();
  if (wakeup_ && kept_.empty()) {
    eventfd_t count = 0;
    static_cast<void>(::eventfd_read(wakeup_.get(), &count));
  }
  return std::optional<Packet>(std::move(packet));
}

void Connection::hang_up() {
  const std::lock_guard<std::mutex> lock(mutex_);
  end(Error(ErrorKind::cancelled, "hung up"));
}

// Without the lock: a thread that the child does not have may hold it.
void Connection::leave() noexcept {
  socket_.reset();
  loop_.reset();
  wakeup_.reset();
}

bool Connection::is_open() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return !end_;
}

}  // namespace migrationd::guest
