// SPDX-License-Identifier: Apache-2.0
#include "ram/rdma_writer.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::ram {

using transports::RdmaLocal;
using transports::RdmaRemote;

RdmaWriter::RdmaWriter(RdmaConnections& connections) {
  auto main = std::make_unique<Lane>();
  main->control = connections.main.get();
  main->control->set_write_listener(main.get());
  lanes_.push_back(std::move(main));
  for (const auto& further : connections.lanes) {
    auto lane = std::make_unique<Lane>();
    lane->lane = further.get();
    lane->lane->set_write_listener(lane.get());
    lanes_.push_back(std::move(lane));
  }
}

RdmaWriter::~RdmaWriter() {
  for (const auto& lane : lanes_) {
    if (lane->control != nullptr) lane->control->set_write_listener(nullptr);
    if (lane->lane != nullptr) lane->lane->set_write_listener(nullptr);
  }
}

Result<bool> RdmaWriter::post(Lane& lane, RdmaLocal from, RdmaRemote to, bool signalled) {
  MD_TRY(const bool posted, lane.link().post_write(from, to, lane.posted + 1, signalled));
  if (!posted) return false;
  ++lane.posted;
  if (signalled) lane.signalled = lane.posted;
  return true;
}

Result<void> RdmaWriter::wait_until_complete(Lane& lane, std::uint64_t number) {
  const auto done = [&lane, number] { return lane.completed >= number; };
  if (lane.lane != nullptr) return lane.lane->wait_until(done);
  MD_TRY(const bool here, lane.control->wait_until(done, RdmaPatience().ready, "the end of page writes"));
  if (here) return {};
  return Error(ErrorKind::peer, "RDMA: the destination disconnected while pages were written to it");
}

// Full: the oldest completion that was asked for makes room for as many as it stands for.
Result<void> RdmaWriter::make_room(Lane& lane) {
  if (lane.signalled == lane.completed) {
    if (lane.posted == lane.completed)
      return Error(ErrorKind::io, "RDMA: the adapter takes no write although none is under way");
    return Error(ErrorKind::io, "RDMA: the adapter's queue is shorter than it said");
  }
  return wait_until_complete(lane, lane.completed + 1);
}

Result<void> RdmaWriter::write(std::size_t number, RdmaLocal from, RdmaRemote to) {
  Lane& lane = *lanes_[number];
  while (lane.posted - lane.completed >= most_under_way) MD_CHECK(make_room(lane));
  const bool signalled = lane.posted + 1 - lane.signalled >= signal_every;
  while (true) {
    MD_TRY(const bool posted, post(lane, from, to, signalled));
    if (posted) break;
    MD_CHECK(make_room(lane));
  }
  ++posted_;
  // Now and then, without waiting: completions are taken while there is something else to do.
  if (signalled) MD_CHECK(pump(lane));
  return {};
}

Result<void> RdmaWriter::ask_for_completion(Lane& lane) {
  while (true) {
    MD_TRY(const bool posted, post(lane, {}, {}, true));
    if (posted) return {};
    MD_CHECK(make_room(lane));
  }
}

Result<void> RdmaWriter::finish() {
  // Asked of all before any is waited for.
  for (const auto& lane : lanes_) {
    if (lane->signalled < lane->posted) MD_CHECK(ask_for_completion(*lane));
  }
  for (const auto& lane : lanes_) MD_CHECK(wait_until_complete(*lane, lane->posted));
  return {};
}

Result<void> RdmaWriter::finish_and_fence() {
  MD_CHECK(finish());
  for (const auto& lane : lanes_) {
    if (lane->lane != nullptr) MD_CHECK(lane->lane->send_fence());
  }
  return {};
}

}  // namespace migrationd::ram
