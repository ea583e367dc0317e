// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/guest_link.hpp"

#include "base/log.hpp"
#include "base/thread.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cstring>
#include <utility>

namespace migrationd {
namespace {

using std::chrono::steady_clock;

const char* name_of(guest::Type type) noexcept { return guest::name_of(static_cast<std::uint16_t>(type)); }

Error gone(const Error& why) { return machine_error("the guest is gone: " + why.text()); }

std::uint32_t serial_of(const Bytes& packet) noexcept { return load_be<std::uint32_t>(packet.data() + 4); }

}  // namespace

GuestLink::GuestLink(UniqueFd socket, std::chrono::milliseconds deadline, GuestListener& listener,
                     std::unique_ptr<StopSource> stop) noexcept
    : socket_(std::move(socket)), deadline_(deadline), listener_(listener), stop_(std::move(stop)) {}

Result<std::shared_ptr<GuestLink>> GuestLink::start(UniqueFd socket, std::chrono::milliseconds deadline,
                                                    GuestListener& listener) {
  MD_TRY(auto stop, StopSource::make());
  std::shared_ptr<GuestLink> link(new GuestLink(std::move(socket), deadline, listener, std::move(stop)));
  // One byte more than a packet may have: what is longer is seen to be.
  link->buffer_.resize(guest::packet_bytes + 1);
  MD_CHECK(start_thread(link->thread_, "start the thread of the guest's link", [self = link.get()] { self->run(); }));
  return link;
}

GuestLink::~GuestLink() { close(); }

void GuestLink::close() noexcept {
  stop_->request();
  if (thread_.joinable()) thread_.join();
}

std::optional<Error> GuestLink::lost() const {
  const std::lock_guard lock(state_);
  return lost_;
}

// --- questions ----------------------------------------------------------------------------------------------------

Result<std::uint32_t> GuestLink::begin_question(guest::Type type, Bytes undo, steady_clock::time_point until) {
  std::unique_lock lock(state_);
  changed_.wait_until(lock, until, [&] { return !question_ || lost_; });
  if (lost_) return gone(*lost_);
  if (question_) return machine_error(fmt::format("the guest is still busy with {}", name_of(question_->type)));
  if (overdue_) {
    return machine_error(fmt::format("the guest hangs: it has not answered {} yet, and is not asked for {}",
                                     name_of(overdue_->type), name_of(type)));
  }
  if (++last_serial_ == 0) ++last_serial_;
  question_.emplace(Question{last_serial_, type, std::nullopt, std::move(undo)});
  return last_serial_;
}

Result<GuestMessage> GuestLink::end_question(std::uint32_t serial, steady_clock::time_point until) {
  std::unique_lock lock(state_);
  changed_.wait_until(lock, until, [&] { return question_->answer || lost_; });
  Question question = std::move(*question_);
  question_.reset();
  changed_.notify_all();
  if (question.answer) return std::move(*question.answer);
  if (lost_) return gone(*lost_);
  auto error = machine_error(
      fmt::format("the guest hangs: no answer to {} (request {}) in time", name_of(question.type), serial));
  overdue_ = std::move(question);
  return error;
}

Result<GuestMessage> GuestLink::ask_packet(Bytes packet, guest::Type type, unsigned patience, int fd, Bytes undo) {
  const auto until = steady_clock::now() + deadline_ * patience;
  MD_TRY(const std::uint32_t serial, begin_question(type, std::move(undo), until));
  store_be(packet.data() + 4, serial);
  if (auto sent = send(packet, fd, until); !sent) {
    const std::lock_guard lock(state_);
    question_.reset();
    changed_.notify_all();
    if (lost_) return gone(*lost_);
    return std::move(sent).error().with(fmt::format("ask the guest for {}", name_of(type)));
  }
  MD_TRY(GuestMessage answer, end_question(serial, until));
  if (answer.header.type != guest::refusal) return answer;
  MD_TRY(const auto refused, guest::decode<guest::Refusal>(answer.body));
  return machine_error(fmt::format("the guest refuses {}: {}", name_of(type), printable(refused.why, 1024)));
}

Result<void> GuestLink::send(const Bytes& packet, int fd, steady_clock::time_point until) const {
  iovec piece{const_cast<std::byte*>(packet.data()), packet.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  while (::sendmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return Error::from_errno("send to the guest");
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - steady_clock::now());
    if (left.count() <= 0) return machine_error("the guest hangs: it does not read");
    std::array<pollfd, 2> waits{pollfd{socket_.get(), POLLOUT, 0}, pollfd{stop_->fd(), POLLIN, 0}};
    ::poll(waits.data(), waits.size(), static_cast<int>(left.count()) + 1);
    if (stop_->requested()) return cancelled_error();
  }
  return {};
}

void GuestLink::tell_packet(const Bytes& packet) noexcept {
  if (auto sent = send(packet, -1, steady_clock::now()); !sent && !lost()) log::warning(sent.error().text());
}

void GuestLink::send_answer(const Bytes& packet, int fd) noexcept {
  // Who asks without reading the answers is not waited for.
  requested_.store(0, std::memory_order_release);
  if (auto sent = send(packet, fd, steady_clock::now()); !sent && !lost()) {
    log::warning(sent.error().text());
    stop_->request();
  }
}

void GuestLink::answer_raw(const guest::Header& request, ByteView body, int fd) noexcept {
  ByteWriter out;
  guest::encode_header({static_cast<std::uint16_t>(request.type | guest::reply_bit), request.serial}, out);
  out.bytes(body);
  send_answer(std::move(out).take(), fd);
}

void GuestLink::refuse(const guest::Header& request, const std::string& why) noexcept {
  send_answer(guest::packet(guest::refusal, request.serial, guest::Refusal{why}), -1);
}

// --- the reader ---------------------------------------------------------------------------------------------------

void GuestLink::run() {
  while (true) {
    std::array<pollfd, 2> waits{pollfd{socket_.get(), POLLIN, 0}, pollfd{stop_->fd(), POLLIN, 0}};
    if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR)
      return end(Error::from_errno("wait for the guest"));
    if (stop_->requested()) return end(cancelled_error());
    auto message = receive();
    if (!message) return end(std::move(message).error());
    if (!*message) continue;
    const guest::Header header = (*message)->header;
    if (auto taken = take(std::move(**message)); !taken) {
      log::warning(fmt::format("the guest is cut off: {}", taken.error().text()));
      [[maybe_unused]] const auto told = send(
          guest::packet(guest::refusal, header.serial == 0 ? 1 : header.serial, guest::Refusal{taken.error().text()}),
          -1, steady_clock::now());
      return end(std::move(taken).error());
    }
  }
}

void GuestLink::end(Error why) {
  {
    const std::lock_guard lock(state_);
    lost_ = why;
    changed_.notify_all();
  }
  ::shutdown(socket_.get(), SHUT_RDWR);
  listener_.on_lost(why);
}

// Nothing: there was none after all.
Result<std::optional<GuestMessage>> GuestLink::receive() {
  iovec piece{buffer_.data(), buffer_.size()};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int) * guest::packet_fds)> control{};
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t length = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (length < 0) {
    if (errno == EAGAIN || errno == EINTR) return std::optional<GuestMessage>();
    return Error::from_errno("read from the guest");
  }
  // First of all: they are ours to close, whatever else is wrong.
  GuestMessage out;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    for (std::size_t at = 0; CMSG_LEN(at + sizeof(int)) <= header->cmsg_len; at += sizeof(int)) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + at, sizeof fd);
      out.fds.emplace_back(fd);
    }
  }
  if (length == 0) return Error(ErrorKind::peer, "it closed the connection");
  if ((message.msg_flags & MSG_TRUNC) != 0 || static_cast<std::size_t>(length) > guest::packet_bytes)
    return wire_error(fmt::format("a packet of more than {} bytes", guest::packet_bytes));
  if ((message.msg_flags & MSG_CTRUNC) != 0)
    return wire_error(fmt::format("a packet with more than {} descriptors", guest::packet_fds));
  const ByteView packet(buffer_.data(), static_cast<std::size_t>(length));
  ByteReader in(packet);
  MD_TRY(out.header, guest::decode_header(in));
  const guest::FdCount count = guest::fds_of(out.header.type);
  if (out.fds.size() < count.least || out.fds.size() > count.most)
    return wire_error(fmt::format("{} with {} descriptors", guest::name_of(out.header.type), out.fds.size()));
  out.body.assign(in.rest().begin(), in.rest().end());
  return std::optional<GuestMessage>(std::move(out));
}

Result<void> GuestLink::take(GuestMessage message) {
  return message.header.is_reply() ? take_answer(std::move(message)) : take_request(std::move(message));
}

Result<void> GuestLink::take_answer(GuestMessage message) {
  const auto answers = [&](const std::optional<Question>& question) {
    if (!question || question->answer || question->serial != message.header.serial) return false;
    return message.header.type == guest::refusal ||
           message.header.type == (static_cast<std::uint16_t>(question->type) | guest::reply_bit);
  };
  if (message.header.type == guest::refusal) MD_CHECK(guest::decode<guest::Refusal>(message.body));
  std::optional<Question> late;
  {
    const std::lock_guard lock(state_);
    if (answers(question_)) {
      question_->answer = std::move(message);
      changed_.notify_all();
      return {};
    }
    if (!answers(overdue_))
      return wire_error(fmt::format("{} (request {}) that nobody waits for", guest::name_of(message.header.type),
                                    message.header.serial));
    late = std::exchange(overdue_, std::nullopt);
  }
  take_late(std::move(late), message);
  return {};
}

// What it did is undone, and until that is answered it counts as hanging.
void GuestLink::take_late(std::optional<Question> late, const GuestMessage& answer) {
  log::warning(fmt::format("the guest answered {} after its deadline", name_of(late->type)));
  if (late->undo.empty() || answer.header.type == guest::refusal) return;
  Bytes undo = std::move(late->undo);
  {
    const std::lock_guard lock(state_);
    if (++last_serial_ == 0) ++last_serial_;
    store_be(undo.data() + 4, last_serial_);
    overdue_.emplace(
        Question{last_serial_, static_cast<guest::Type>(load_be<std::uint16_t>(undo.data())), std::nullopt, {}});
  }
  // No further question until the undo is answered: what cannot be sent leaves the guest hanging, which it is.
  if (auto sent = send(undo, -1, steady_clock::now()); !sent)
    log::warning(fmt::format("request {}: {}", serial_of(undo), sent.error().text()));
}

Result<void> GuestLink::take_request(GuestMessage message) {
  if (!guest::is_notice(message.header.type)) {
    std::uint32_t none = 0;
    if (!requested_.compare_exchange_strong(none, message.header.serial, std::memory_order_acq_rel))
      return wire_error(fmt::format("{} before request {} was answered", guest::name_of(message.header.type), none));
  }
  return listener_.on_message(std::move(message));
}

}  // namespace migrationd
