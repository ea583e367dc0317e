// SPDX-License-Identifier: Apache-2.0
#include "ram/rdma_control.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <thread>
#include <utility>

namespace migrationd::ram {

using rdma::control_buffer_bytes;
using rdma::control_header_bytes;
using rdma::ControlMessage;
using rdma::ControlType;
using transports::RdmaAccess;
using transports::RdmaCompletion;
using transports::RdmaRequest;
using transports::RdmaWake;

namespace {

using SteadyClock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// Ids of our sends; receives have their slot's number.
constexpr std::uint64_t message_id = 100;
constexpr std::uint64_t ready_id = 101;

// An adapter that has not answered for so many silences will not: its own retries take a few seconds at most.
constexpr int silences_for_dead = 6;
// How long a last word may take.
constexpr auto last_word_limit = milliseconds(200);

constexpr milliseconds no_limit{-1};

}  // namespace

RdmaControl::RdmaControl(std::unique_ptr<transports::RdmaLink> link, StopSource& stop, Options options)
    : stop_(stop),
      options_(options),
      receive_memory_(new std::byte[slots * control_buffer_bytes]),
      send_memory_(new std::byte[control_buffer_bytes + control_header_bytes]),
      link_(std::move(link)),
      conversation_(options.unasked) {}

RdmaControl::~RdmaControl() = default;

Result<std::unique_ptr<RdmaControl>> RdmaControl::make(std::unique_ptr<transports::RdmaLink> link, StopSource& stop,
                                                       Options options) {
  std::unique_ptr<RdmaControl> control(new RdmaControl(std::move(link), stop, options));
  auto done = control->set_up();
  if (!done) return std::move(done).error().with("RDMA: set up the control channel");
  return control;
}

Result<void> RdmaControl::set_up() {
  const auto domain = link_->domain();
  MD_TRY(receive_region_,
         domain->register_memory({receive_memory_.get(), slots * control_buffer_bytes}, RdmaAccess::write_local));
  MD_TRY(send_region_, domain->register_memory({send_memory_.get(), control_buffer_bytes + control_header_bytes},
                                               RdmaAccess::read_local));
  rdma::encode_control_header(send_memory_.get() + control_buffer_bytes, ControlType::ready, 1, 0);
  for (std::size_t slot = 0; slot < slots; ++slot) MD_CHECK(post_slot(slot));
  return {};
}

std::byte* RdmaControl::slot_memory(std::size_t slot) const noexcept {
  return receive_memory_.get() + slot * control_buffer_bytes;
}

Result<void> RdmaControl::post_slot(std::size_t slot) {
  return link_->post_receive({slot_memory(slot), control_buffer_bytes, receive_region_->local_key()}, slot);
}

Error RdmaControl::gone(std::string_view what) const {
  return Error(ErrorKind::peer, fmt::format("RDMA: {} disconnected while {} was awaited", link_->describe(), what));
}

// --- completions ------------------------------------------------------------------------------------------------

Result<void> RdmaControl::pump() {
  while (!failure_) {
    auto done = link_->poll(completions_);
    if (!done) return fail(std::move(done).error());
    for (const RdmaCompletion& completion : *done) {
      if (auto taken = take(completion); !taken) return fail(std::move(taken).error());
    }
    if (done->size() < completions_.size()) return {};
  }
  return *failure_;
}

Error RdmaControl::fail(Error why) {
  failure_ = std::move(why);
  return *failure_;
}

Result<void> RdmaControl::take(const RdmaCompletion& completion) {
  switch (completion.request) {
    case RdmaRequest::receive:
      return take_receive(completion.id, completion.length);
    case RdmaRequest::send:
      if (completion.id == message_id) sending_ = false;
      return {};
    case RdmaRequest::write:
      if (completion.id == own_write_id) {
        asking_alive_ = false;
      } else if (writes_ != nullptr) {
        writes_->written(completion.id);
      }
      return {};
  }
  return {};
}

Result<void> RdmaControl::take_receive(std::size_t slot, std::uint32_t length) {
  MD_TRY(const ControlMessage message, rdma::decode_control({slot_memory(slot), length}));
  MD_TRY(const rdma::Incoming what, conversation_.received(message));
  if (message.type == ControlType::qemu_file) peer_is_old_ = message.repeat != 0;
  switch (what) {
    case rdma::Incoming::ready:
      return post_slot(slot);
    case rdma::Incoming::answer:
      answer_ = Arrived{slot, message};
      return {};
    case rdma::Incoming::message:
      arrived_.push_back({slot, message});
      return {};
  }
  return {};
}

Result<bool> RdmaControl::wait_until(const std::function<bool()>& done, milliseconds limit, std::string_view what) {
  const auto start = SteadyClock::now();
  while (true) {
    MD_CHECK(pump());
    if (done()) return true;
    milliseconds wait = options_.patience.silence;
    if (limit != no_limit) {
      const auto left = limit - std::chrono::duration_cast<milliseconds>(SteadyClock::now() - start);
      if (left <= milliseconds::zero()) {
        return Error(ErrorKind::peer,
                     fmt::format("RDMA: {}: no {} within {} ms", link_->describe(), what, limit.count()));
      }
      wait = std::min(wait, left);
    }
    MD_TRY(const RdmaWake wake, link_->wait(stop_, wait));
    if (wake == RdmaWake::disconnected) {
      MD_CHECK(pump());
      return done();
    }
    if (wake == RdmaWake::timed_out) MD_CHECK(prove_alive());
  }
}

Result<void> RdmaControl::prove_alive() {
  const auto now = SteadyClock::now();
  if (asking_alive_) {
    if (now - asked_alive_at_ < silences_for_dead * options_.patience.silence) return {};
    return Error(ErrorKind::peer, fmt::format("RDMA: {} does not answer any more", link_->describe()));
  }
  if (asked_alive_at_ != SteadyClock::time_point() && now - asked_alive_at_ < options_.patience.silence) return {};
  MD_TRY(const bool posted, link_->post_write({}, {}, own_write_id, true));
  if (!posted) return {};  // others are under way, and prove as much
  asking_alive_ = true;
  asked_alive_at_ = now;
  return {};
}

// --- sending ----------------------------------------------------------------------------------------------------

Result<void> RdmaControl::post_message(ControlType type, std::uint32_t repeat, std::span<const ByteView> payload) {
  std::size_t length = 0;
  for (const ByteView piece : payload) {
    if (piece.empty()) continue;
    std::memcpy(send_memory_.get() + control_header_bytes + length, piece.data(), piece.size());
    length += piece.size();
  }
  rdma::encode_control_header(send_memory_.get(), type, repeat, static_cast<std::uint32_t>(length));
  sending_ = true;
  return link_->post_send(
      {send_memory_.get(), static_cast<std::uint32_t>(control_header_bytes + length), send_region_->local_key()},
      message_id);
}

Result<void> RdmaControl::send(ControlType type, std::uint32_t repeat, std::span<const ByteView> payload) {
  const auto may_send = [this] { return !sending_ && conversation_.may_send() && conversation_.answered(); };
  MD_TRY(const bool here, wait_until(may_send, options_.patience.ready, "READY"));
  if (!here) return gone("READY");
  conversation_.sent(type);
  return post_message(type, repeat, payload);
}

Result<void> RdmaControl::request(ControlType type, std::uint32_t repeat, ByteView payload) {
  MD_CHECK(release());
  requested_ = type;
  return send(type, repeat, {&payload, 1});
}

Result<ControlMessage> RdmaControl::await_answer() {
  const std::string what = rdma::control_name(rdma::answer_to(requested_));
  MD_TRY(const bool here, wait_until([this] { return answer_.has_value(); }, options_.patience.answer, what));
  if (!here) return gone(what);
  const ControlMessage message = answer_->message;
  held_ = answer_->slot;
  answer_.reset();
  return message;
}

Result<ControlMessage> RdmaControl::ask(ControlType type, std::uint32_t repeat, ByteView payload) {
  MD_CHECK(request(type, repeat, payload));
  return await_answer();
}

Result<void> RdmaControl::answer(ControlType type, std::uint32_t repeat, ByteView payload) {
  MD_CHECK(finish());
  return post_message(type, repeat, {&payload, 1});
}

Result<void> RdmaControl::finish() {
  MD_TRY(const bool here, wait_until([this] { return !sending_; }, options_.patience.ready, "the end of a message"));
  if (!here) return gone("the end of a message");
  return {};
}

// --- receiving --------------------------------------------------------------------------------------------------

Result<void> RdmaControl::release() {
  if (!held_) return {};
  const std::size_t slot = *std::exchange(held_, std::nullopt);
  return post_slot(slot);
}

Result<void> RdmaControl::ask_for_message() {
  if (!arrived_.empty() || conversation_.is_asking()) return {};
  MD_CHECK(release());
  conversation_.said_ready();
  return link_->post_send({send_memory_.get() + control_buffer_bytes, control_header_bytes, send_region_->local_key()},
                          ready_id);
}

// True: a message is here; false: the peer has disconnected.
Result<bool> RdmaControl::await_message(bool ask) {
  MD_CHECK(pump());
  MD_CHECK(release());
  if (ask) MD_CHECK(ask_for_message());
  return wait_until([this] { return has_message(); }, no_limit, "a message");
}

Result<std::optional<ControlMessage>> RdmaControl::receive() { return receive(true); }
Result<std::optional<ControlMessage>> RdmaControl::receive_unasked() { return receive(false); }

Result<std::optional<ControlMessage>> RdmaControl::receive(bool ask) {
  auto here = await_message(ask);
  // What came before the failure is told before it: a peer may have said all there was to say before it gave up.
  if (!here && !has_message()) return std::move(here).error();
  if (here && !*here) return std::optional<ControlMessage>();
  held_ = arrived_.front().slot;
  const ControlMessage message = arrived_.front().message;
  arrived_.pop_front();
  return std::optional<ControlMessage>(message);
}

Result<bool> RdmaControl::wait_for_message(milliseconds limit) {
  MD_CHECK(ask_for_message());
  const auto deadline = SteadyClock::now() + limit;
  while (true) {
    auto pumped = pump();
    if (has_message()) return true;
    MD_CHECK(pumped);
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - SteadyClock::now());
    if (left <= milliseconds::zero()) return false;
    MD_TRY(const RdmaWake wake, link_->wait(stop_, left));
    if (wake == RdmaWake::disconnected) return true;
  }
}

// --- last words -------------------------------------------------------------------------------------------------

// Without the stop, which may be why there is a last word.
void RdmaControl::flush_briefly() noexcept {
  const auto deadline = SteadyClock::now() + last_word_limit;
  while (sending_ && SteadyClock::now() < deadline) {
    if (!pump()) return;
    std::this_thread::sleep_for(milliseconds(1));
  }
}

void RdmaControl::say_error() noexcept {
  flush_briefly();
  if (sending_) return;
  if (post_message(ControlType::error, 1, {})) flush_briefly();
}

void RdmaControl::say_last(ControlType type, ByteView payload) noexcept {
  flush_briefly();
  const auto deadline = SteadyClock::now() + last_word_limit;
  while (!conversation_.may_send() && SteadyClock::now() < deadline) {
    if (!pump()) return;
    std::this_thread::sleep_for(milliseconds(1));
  }
  if (sending_ || !conversation_.may_send()) return;
  conversation_.sent(type);
  if (post_message(type, 0, {&payload, 1})) flush_briefly();
}

}  // namespace migrationd::ram
