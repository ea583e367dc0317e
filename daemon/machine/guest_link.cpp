// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/guest_link.hpp"

#include "base/log.hpp"
#include "base/thread.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <span>
#include <utility>

namespace migrationd {
namespace {

using std::chrono::steady_clock;

constexpr std::string_view the_guest = "the guest";

const char* name_of(guest::Type type) noexcept { return guest::name_of(static_cast<std::uint16_t>(type)); }

Error gone(const Error& why) { return machine_error("the guest is gone: " + why.text()); }

std::uint32_t serial_of(const Bytes& packet) noexcept { return load_be<std::uint32_t>(packet.data() + 4); }

}  // namespace

GuestLink::GuestLink(UniqueFd socket, std::chrono::milliseconds deadline, GuestListener& listener,
                     std::unique_ptr<StopSource> stop, UniqueFd wake, bool resting) noexcept
    : socket_(std::move(socket)),
      deadline_(deadline),
      listener_(listener),
      stop_(std::move(stop)),
      wake_(std::move(wake)),
      resting_(resting) {}

Result<std::shared_ptr<GuestLink>> GuestLink::make(UniqueFd socket, std::chrono::milliseconds deadline,
                                                   GuestListener& listener, bool resting) {
  MD_TRY(auto stop, StopSource::make());
  UniqueFd wake(::eventfd(resting ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake) return Error::from_errno("make an eventfd for the guest's link");
  std::shared_ptr<GuestLink> link(
      new GuestLink(std::move(socket), deadline, listener, std::move(stop), std::move(wake), resting));
  MD_CHECK(start_thread(link->thread_, "start the thread of the guest's link", [self = link.get()] { self->run(); }));
  return link;
}

Result<std::shared_ptr<GuestLink>> GuestLink::start(UniqueFd socket, std::chrono::milliseconds deadline,
                                                    GuestListener& listener) {
  return make(std::move(socket), deadline, listener, false);
}

Result<std::shared_ptr<GuestLink>> GuestLink::prepare(UniqueFd socket, std::chrono::milliseconds deadline,
                                                      GuestListener& listener) {
  return make(std::move(socket), deadline, listener, true);
}

GuestLink::~GuestLink() { close(); }

void GuestLink::close() noexcept {
  request_stop();
  if (thread_.joinable()) thread_.join();
}

void GuestLink::request_stop() noexcept {
  stop_->request();
  const std::lock_guard lock(state_);
  changed_.notify_all();
}

std::optional<Error> GuestLink::lost() const {
  const std::lock_guard lock(state_);
  return lost_;
}

// --- from one daemon to another -----------------------------------------------------------------------------------

Result<void> GuestLink::let_go(std::chrono::milliseconds wait) {
  const auto until = steady_clock::now() + wait;
  std::unique_lock lock(state_);
  resting_ = true;
  [[maybe_unused]] const int woken = ::eventfd_write(wake_.get(), 1);
  // A question of ours, the reader between two packets, and the guest's request that it read before.
  const bool rests = changed_.wait_until(lock, until, [&] {
    return lost_ || stop_->requested() || (!question_ && at_rest_ && requested_.load(std::memory_order_acquire) == 0);
  });
  if (rests && !lost_ && !overdue_ && !stop_->requested()) return {};
  auto why = lost_ ? gone(*lost_)
             : overdue_
                 ? machine_error(fmt::format("the guest hangs: it has not answered {} yet, and cannot be handed over",
                                             name_of(overdue_->type)))
             : rests ? cancelled_error()
                     : machine_error("the guest hangs: a request is under way, and it cannot be handed over");
  resting_ = false;
  changed_.notify_all();
  return why;
}

void GuestLink::take_up(std::uint32_t last) noexcept {
  const std::lock_guard lock(state_);
  last_serial_ = last;
  resting_ = false;
  changed_.notify_all();
}

std::uint32_t GuestLink::last_serial() const {
  const std::lock_guard lock(state_);
  return last_serial_;
}

Result<UniqueFd> GuestLink::share_socket() const {
  UniqueFd fd(::fcntl(socket_.get(), F_DUPFD_CLOEXEC, 0));
  if (!fd) return Error::from_errno("hand the guest's connection over");
  return fd;
}

// The reader, when it was woken. False: the end came first.
bool GuestLink::rest() {
  std::unique_lock lock(state_);
  eventfd_t count = 0;
  [[maybe_unused]] const int read = ::eventfd_read(wake_.get(), &count);
  if (!resting_) return true;
  at_rest_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return !resting_ || stop_->requested(); });
  at_rest_ = false;
  return !resting_;
}

// --- questions ----------------------------------------------------------------------------------------------------

Result<std::uint32_t> GuestLink::begin_question(guest::Type type, Bytes undo, steady_clock::time_point until) {
  std::unique_lock lock(state_);
  changed_.wait_until(lock, until, [&] { return !question_ || lost_; });
  if (lost_) return gone(*lost_);
  if (resting_) return machine_error("the guest is being handed over to another daemon");
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
    // Whether the reader or this meets it first is chance.
    if (sent.error().kind() == ErrorKind::peer) return gone(sent.error());
    return std::move(sent).error().with(fmt::format("ask the guest for {}", name_of(type)));
  }
  MD_TRY(GuestMessage answer, end_question(serial, until));
  if (answer.header.type != guest::refusal) return answer;
  MD_TRY(const auto refused, guest::decode<guest::Refusal>(answer.body));
  return machine_error(fmt::format("the guest refuses {}: {}", name_of(type), printable(refused.why, 1024)));
}

Result<void> GuestLink::send(const Bytes& packet, int fd, steady_clock::time_point until) const {
  const std::array<int, 1> fds{fd};
  const auto along = std::span(fds).first(fd >= 0 ? 1 : 0);
  while (true) {
    MD_TRY(const bool sent, guest::try_send_packet(socket_.get(), packet, along, the_guest));
    if (sent) return {};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - steady_clock::now());
    if (left.count() <= 0) return machine_error("the guest hangs: it does not read");
    std::array<pollfd, 2> waits{pollfd{socket_.get(), POLLOUT, 0}, pollfd{stop_->fd(), POLLIN, 0}};
    ::poll(waits.data(), waits.size(), static_cast<int>(left.count()) + 1);
    if (stop_->requested()) return cancelled_error();
  }
}

void GuestLink::tell_packet(const Bytes& packet) noexcept {
  {
    const std::lock_guard lock(state_);
    if (resting_) return;
  }
  if (auto sent = send(packet, -1, steady_clock::now()); !sent && !lost()) log::warning(sent.error().text());
}

void GuestLink::send_answer(const Bytes& packet, int fd) noexcept {
  // Who asks without reading the answers is not waited for. The next request may be here before this thread goes on.
  requested_.store(0, std::memory_order_release);
  if (auto sent = send(packet, fd, steady_clock::now()); !sent && !lost()) {
    log::warning(sent.error().text());
    request_stop();
  }
  const std::lock_guard lock(state_);
  changed_.notify_all();
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
    std::array<pollfd, 3> waits{pollfd{socket_.get(), POLLIN, 0}, pollfd{stop_->fd(), POLLIN, 0},
                                pollfd{wake_.get(), POLLIN, 0}};
    if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR)
      return end(Error::from_errno("wait for the guest"));
    if (waits[2].revents != 0 && !rest()) return;
    if (stop_->requested()) return end(cancelled_error());
    auto message = guest::try_receive_packet(socket_.get(), the_guest);
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
