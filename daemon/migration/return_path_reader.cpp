// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/return_path_reader.hpp"

#include "base/log.hpp"
#include "base/thread.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>

#include <utility>

namespace migrationd::migration {
namespace {

// Messages are tiny: a page request with its block's name has 273 bytes at most. Bitmaps are read past the buffer.
constexpr std::size_t buffer_bytes = 4096;

}  // namespace

Result<std::unique_ptr<ReturnPathReader>> ReturnPathReader::start(transports::Channel& channel, StopSource& stop,
                                                                  PostcopyListener* listener) {
  MD_TRY(auto answered, Gate::make());
  std::unique_ptr<ReturnPathReader> reader(new ReturnPathReader(channel, stop, listener, std::move(answered)));
  MD_CHECK(start_thread(reader->thread_, "start the return path's reader", [self = reader.get()] { self->run(); }));
  return reader;
}

ReturnPathReader::ReturnPathReader(transports::Channel& channel, StopSource& stop, PostcopyListener* listener,
                                   std::unique_ptr<Gate> answered)
    : channel_(channel), stop_(stop), listener_(listener), answered_(std::move(answered)) {}

ReturnPathReader::~ReturnPathReader() {
  channel_.shutdown();
  if (thread_.joinable()) thread_.join();
}

void ReturnPathReader::run() {
  ::pthread_setname_np(::pthread_self(), "mig/src/return");
  auto answer = read_messages();
  if (answer) {
    finish(*answer, *answer == PeerAnswer::premature
                        ? wire_error("return path: the destination reported success before the end of the stream")
                        : peer_failed());
  } else {
    finish(PeerAnswer::lost, std::move(answer).error());
  }
}

void ReturnPathReader::finish(PeerAnswer answer, Error why) {
  why_ = std::move(why);
  answer_.store(answer, std::memory_order_release);
  answered_->open();
  if (listener_ != nullptr && answer != PeerAnswer::success) listener_->on_lost(why_);
  // A peer that refused the machine, or took it before it had it all, need not read on: the mover may be blocked in a
  // write to it.
  if (answer == PeerAnswer::failure || answer == PeerAnswer::premature) channel_.shutdown();
}

Result<PeerAnswer> ReturnPathReader::read_messages() {
  transports::BufferedReader reader(channel_, buffer_bytes);
  while (true) {
    auto ended = reader.at_end();
    if (!ended) return std::move(ended).error().with("return path");
    if (*ended) return Error(ErrorKind::peer, "return path: the destination closed the connection without an answer");
    auto decoded = stream::decode_return_message(reader.buffered());
    while (decoded.needs_more()) {
      auto available = reader.peek(decoded.needed());
      if (!available) return std::move(available).error().with("return path");
      decoded = stream::decode_return_message(*available);
    }
    if (decoded.failed()) return std::move(decoded).error();
    reader.consume(decoded.consumed());

    const stream::ReturnMessage& message = decoded.value();
    if (const auto* shut = std::get_if<stream::reply::Shut>(&message)) {
      if (shut->value != 0) return PeerAnswer::failure;
      return success_due_.load(std::memory_order_acquire) ? PeerAnswer::success : PeerAnswer::premature;
    }
    if (std::holds_alternative<stream::reply::SwitchoverAck>(message)) {
      acknowledged_.store(true, std::memory_order_release);
    } else if (listener_ != nullptr) {
      MD_CHECK(tell_listener(reader, message));
    } else if (!std::holds_alternative<stream::reply::Pong>(message)) {
      return wire_error(fmt::format("return path: {} outside of postcopy", stream::return_message_name(message)));
    }
  }
}

Result<void> ReturnPathReader::tell_listener(transports::BufferedReader& reader, const stream::ReturnMessage& message) {
  if (const auto* request = std::get_if<stream::reply::RequestPages>(&message)) return listener_->on_request(*request);
  if (const auto* bitmap = std::get_if<stream::reply::RecvBitmap>(&message)) return read_bitmap(reader, bitmap->block);
  if (std::holds_alternative<stream::reply::ResumeAck>(message)) return listener_->on_resume_ack();
  if (const auto* pong = std::get_if<stream::reply::Pong>(&message)) listener_->on_pong(pong->value);
  return {};
}

// Its length is ours: that of our own block.
Result<void> ReturnPathReader::read_bitmap(transports::BufferedReader& reader, const std::string& block) {
  MD_TRY(const std::uint64_t pages, listener_->on_bitmap_announced(block));
  auto size_field = reader.peek(sizeof(std::uint64_t));
  if (!size_field) return std::move(size_field).error().with("return path: RECV_BITMAP");
  const ByteView size = *size_field;
  auto checked = stream::decode_received_bitmap(size.first(sizeof(std::uint64_t)), pages);
  if (checked.failed()) return std::move(checked).error();
  Bytes blob(sizeof(std::uint64_t) + stream::received_bitmap_bytes(pages) + sizeof(std::uint64_t));
  if (auto read = reader.read_exact(blob); !read) return std::move(read).error().with("return path: RECV_BITMAP");
  auto bitmap = stream::decode_received_bitmap(blob, pages);
  if (bitmap.failed()) return std::move(bitmap).error();
  return listener_->on_bitmap(block, bitmap.value());
}

PeerAnswer ReturnPathReader::wait_for_answer(std::chrono::milliseconds limit) const {
  pollfd fd{answered_->fd(), POLLIN, 0};
  ::poll(&fd, 1, static_cast<int>(limit.count()));
  return answer();
}

Error ReturnPathReader::why() const { return why_; }

}  // namespace migrationd::migration
