// SPDX-License-Identifier: Apache-2.0
#include "ram/rdma_channel.hpp"

#include "ram/rdma_inbox.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace migrationd::ram {

using rdma::ControlType;

RdmaChannel::RdmaChannel(RdmaSide side, RdmaConnections connections)
    : side_(side), connections_(std::move(connections)) {}

RdmaChannel::~RdmaChannel() = default;

Result<std::unique_ptr<RdmaChannel>> RdmaChannel::make(RdmaSide side, RdmaConnections connections) {
  std::unique_ptr<RdmaChannel> channel(new RdmaChannel(side, std::move(connections)));
  if (side == RdmaSide::source && channel->connections_.return_path) {
    MD_TRY(channel->inbox_,
           RdmaInbox::start(*channel->connections_.return_path, !channel->connections_.large_requests));
  }
  return channel;
}

// --- reading ----------------------------------------------------------------------------------------------------

Result<std::size_t> RdmaChannel::read(std::span<const iovec> into) {
  if (inbox_) return inbox_->read(into);
  if (side_ == RdmaSide::source) return Error(ErrorKind::io, "RDMA: there is no return path to read from");
  if (rest_.empty()) {
    MD_TRY(const auto bytes, next_stream_bytes(*connections_.main));
    if (!bytes) return std::size_t{0};
    rest_ = *bytes;
  }
  std::size_t done = 0;
  for (const iovec& piece : into) {
    const std::size_t now = std::min(piece.iov_len, rest_.size());
    if (now != 0) std::memcpy(piece.iov_base, rest_.data(), now);
    rest_ = rest_.subspan(now);
    done += now;
  }
  return done;
}

Result<bool> RdmaChannel::wait_for_bytes(std::chrono::milliseconds limit) {
  if (!rest_.empty()) return true;
  return connections_.main->wait_for_message(limit);
}

bool RdmaChannel::peer_is_old() const noexcept {
  const RdmaControl* const from = reading();
  return from != nullptr && from->peer_is_old();
}

// --- writing ----------------------------------------------------------------------------------------------------

Result<void> RdmaChannel::write(std::span<const iovec> from) {
  RdmaControl* const to = writing();
  if (to == nullptr) return Error(ErrorKind::io, "RDMA: there is no return path to write to");
  part_.clear();
  std::size_t filled = 0;
  const auto send_part = [&]() -> Result<void> {
    // 0 records, as QEMU 10.0 counts it.
    MD_CHECK(to->send(ControlType::qemu_file, 0, part_));
    part_.clear();
    filled = 0;
    return {};
  };
  for (const iovec& piece : from) {
    ByteView left(static_cast<const std::byte*>(piece.iov_base), piece.iov_len);
    while (!left.empty()) {
      const std::size_t now = std::min(left.size(), rdma::stream_part_bytes - filled);
      part_.push_back(left.first(now));
      filled += now;
      left = left.subspan(now);
      if (filled == rdma::stream_part_bytes) MD_CHECK(send_part());
    }
  }
  if (filled != 0) MD_CHECK(send_part());
  // What was sent, its READY was there for.
  if (inbox_ && !heard_) inbox_->open();
  heard_ = true;
  // A return path carries a few words, the last of which must have arrived before the connection ends.
  return side_ == RdmaSide::destination ? to->finish() : Result<void>();
}

Result<void> RdmaChannel::finish_writing() {
  if (RdmaControl* const to = writing()) MD_CHECK(to->finish());
  shutdown();
  return {};
}

void RdmaChannel::shutdown() noexcept {
  connections_.main->disconnect();
  if (connections_.return_path) connections_.return_path->disconnect();
  for (const auto& lane : connections_.lanes) lane->link().disconnect();
  // Who waits for the first message hears of the end.
  if (inbox_) inbox_->open();
}

void RdmaChannel::say_failure(ByteView last_word) noexcept {
  if (side_ == RdmaSide::destination && connections_.return_path && !last_word.empty())
    connections_.return_path->say_last(ControlType::qemu_file, last_word);
  connections_.main->say_error();
}

RdmaTotals RdmaChannel::totals() const noexcept {
  RdmaTotals out;
  const auto add = [&out](const transports::RdmaLink& link) {
    const transports::RdmaCounters& counters = link.counters();
    out.control_messages += counters.sends + counters.receives;
    out.control_bytes += counters.sent_bytes + counters.received_bytes;
    out.writes += counters.writes;
    out.written_bytes += counters.written_bytes;
    out.completions += counters.completions;
    out.waits += counters.waits;
  };
  add(connections_.main->link());
  if (connections_.return_path) add(connections_.return_path->link());
  for (const auto& lane : connections_.lanes) add(lane->link());
  out.queue_pairs = connections_.lanes.size() + 1;
  // Those of the domain, which all connections but the return path's share.
  out.registrations = connections_.main->link().counters().registrations;
  out.registered_bytes = connections_.main->link().counters().registered_bytes;
  return out;
}

}  // namespace migrationd::ram
