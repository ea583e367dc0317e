// SPDX-License-Identifier: Apache-2.0
#include "ram/rdma_lane.hpp"

#include "ram/rdma_control.hpp"

#include <fmt/format.h>

namespace migrationd::ram {

using transports::RdmaCompletion;
using transports::RdmaRequest;
using transports::RdmaWake;

RdmaLane::RdmaLane(std::unique_ptr<transports::RdmaLink> link, StopSource& stop)
    : stop_(stop), link_(std::move(link)) {}

Result<std::unique_ptr<RdmaLane>> RdmaLane::make(std::unique_ptr<transports::RdmaLink> link, StopSource& stop) {
  std::unique_ptr<RdmaLane> lane(new RdmaLane(std::move(link), stop));
  MD_TRY(lane->region_, lane->link_->domain()->register_memory(lane->memory_, transports::RdmaAccess::write_local));
  rdma::encode_control_header(lane->memory_.data() + rdma::control_header_bytes, rdma::ControlType::register_finished,
                              1, 0);
  MD_CHECK(lane->post_fence_receive());
  return lane;
}

Result<void> RdmaLane::post_fence_receive() {
  return link_->post_receive({memory_.data(), rdma::control_header_bytes, region_->local_key()}, 0);
}

Result<void> RdmaLane::pump() {
  while (true) {
    MD_TRY(const auto done, link_->poll(completions_));
    for (const RdmaCompletion& completion : done) {
      if (completion.request == RdmaRequest::send) sending_ = false;
      if (completion.request == RdmaRequest::write && writes_ != nullptr) writes_->written(completion.id);
      if (completion.request != RdmaRequest::receive) continue;
      MD_TRY(const auto message, rdma::decode_control({memory_.data(), completion.length}));
      if (message.type != rdma::ControlType::register_finished || fence_came_)
        return wire_error(fmt::format("RDMA: a {} on a queue pair for pages", rdma::describe_control(message.type)));
      fence_came_ = true;
    }
    if (done.size() < completions_.size()) return {};
  }
}

Result<void> RdmaLane::wait_until(const std::function<bool()>& done) {
  const auto limit = RdmaPatience().ready;
  while (true) {
    MD_CHECK(pump());
    if (done()) return {};
    MD_TRY(const RdmaWake wake, link_->wait(stop_, limit));
    if (wake == RdmaWake::ready) continue;
    MD_CHECK(pump());
    if (done()) return {};
    return Error(ErrorKind::peer, fmt::format("RDMA: {}: a queue pair for pages {}", link_->describe(),
                                              wake == RdmaWake::disconnected ? "was disconnected" : "is silent"));
  }
}

Result<void> RdmaLane::send_fence() {
  sending_ = true;
  MD_CHECK(link_->post_send(
      {memory_.data() + rdma::control_header_bytes, rdma::control_header_bytes, region_->local_key()}, 0));
  return wait_until([this] { return !sending_; });
}

Result<void> RdmaLane::await_fence() {
  MD_CHECK(wait_until([this] { return fence_came_; }));
  fence_came_ = false;
  return post_fence_receive();
}

}  // namespace migrationd::ram
