// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/return_path_reader.hpp"

#include "base/log.hpp"
#include "base/thread.hpp"
#include "protocol/stream/return_path.hpp"
#include "transports/buffered.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <pthread.h>

#include <utility>

namespace migrationd::migration {
namespace {

// Messages of plain precopy are tiny; a page request of a later release is 270 bytes.
constexpr std::size_t buffer_bytes = 4096;

}  // namespace

Result<std::unique_ptr<ReturnPathReader>> ReturnPathReader::start(transports::Channel& channel, StopSource& stop) {
  MD_TRY(auto answered, Gate::make());
  std::unique_ptr<ReturnPathReader> reader(new ReturnPathReader(channel, stop, std::move(answered)));
  MD_CHECK(start_thread(reader->thread_, "start the return path's reader", [self = reader.get()] { self->run(); }));
  return reader;
}

ReturnPathReader::ReturnPathReader(transports::Channel& channel, StopSource& stop, std::unique_ptr<Gate> answered)
    : channel_(channel), stop_(stop), answered_(std::move(answered)) {}

ReturnPathReader::~ReturnPathReader() {
  channel_.shutdown();
  if (thread_.joinable()) thread_.join();
}

void ReturnPathReader::run() {
  ::pthread_setname_np(::pthread_self(), "mig/src/return");
  auto answer = read_messages();
  if (answer) {
    finish(*answer, *answer == PeerAnswer::premature
                        ? wire_error("the destination reported success before the end of the stream")
                        : Error(ErrorKind::peer, "Sibling indicated error 1"));
  } else {
    finish(PeerAnswer::lost, std::move(answer).error().with("return path"));
  }
}

void ReturnPathReader::finish(PeerAnswer answer, Error why) {
  why_ = std::move(why);
  answer_.store(answer, std::memory_order_release);
  answered_->open();
  // A peer that refused the machine, or took it before it had it all, need not read on: the mover may be blocked in a
  // write to it.
  if (answer == PeerAnswer::failure || answer == PeerAnswer::premature) channel_.shutdown();
}

Result<PeerAnswer> ReturnPathReader::read_messages() {
  transports::BufferedReader reader(channel_, buffer_bytes);
  while (true) {
    MD_TRY(const bool ended, reader.at_end());
    if (ended) return Error(ErrorKind::peer, "the destination closed the connection without an answer");
    auto decoded = stream::decode_return_message(reader.buffered());
    while (decoded.needs_more()) {
      MD_TRY(const ByteView available, reader.peek(decoded.needed()));
      decoded = stream::decode_return_message(available);
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
    } else if (!std::holds_alternative<stream::reply::Pong>(message)) {
      return wire_error(fmt::format("{} outside of postcopy", stream::return_message_name(message)));
    }
  }
}

PeerAnswer ReturnPathReader::wait_for_answer(std::chrono::milliseconds limit) const {
  pollfd fd{answered_->fd(), POLLIN, 0};
  ::poll(&fd, 1, static_cast<int>(limit.count()));
  return answer();
}

Error ReturnPathReader::why() const { return why_; }

}  // namespace migrationd::migration
