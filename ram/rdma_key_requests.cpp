// SPDX-License-Identifier: Apache-2.0
#include "ram/rdma_key_requests.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd::ram {

using rdma::ControlType;

namespace {

// Chunks asked for in one message of a destination of our kind: a batch is 4 MiB, and what lies scattered has more.
constexpr std::size_t keys_at_once = 16;

}  // namespace

RdmaKeyRequests::RdmaKeyRequests(const RamMap& map, RdmaConnections& connections, RdmaKeys& keys,
                                 const RdmaWriter& writes)
    : map_(map), connections_(connections), keys_(keys), writes_(writes) {}

void RdmaKeyRequests::want(std::size_t block, std::uint64_t chunk) {
  if (keys_.is_wanted(block, chunk)) return;
  keys_.note_wanted(block, chunk);
  wanted_.push_back({block, chunk});
}

Result<void> RdmaKeyRequests::next() {
  if (!asked_.empty()) {
    auto taken = take_answer();
    if (!taken) return at_destination(std::move(taken).error());
    asked_.clear();
  }
  if (wanted_.empty()) return {};
  const std::size_t now = std::min(wanted_.size(), connections_.large_requests ? keys_at_once : 1);
  asked_.assign(wanted_.begin(), wanted_.begin() + static_cast<std::ptrdiff_t>(now));
  wanted_.erase(wanted_.begin(), wanted_.begin() + static_cast<std::ptrdiff_t>(now));
  auto sent = send_request();
  if (!sent) return at_destination(std::move(sent).error());
  return {};
}

// Of a request for several blocks the first stands for all.
Error RdmaKeyRequests::at_destination(Error error) const {
  return std::move(error).with(
      fmt::format("RDMA: register block '{}' at the destination", printable(map_.at(asked_.front().block).name())));
}

Result<void> RdmaKeyRequests::send_request() {
  ByteWriter out;
  for (const Wanted& one : asked_) encode(out, keys_.request_for(one.block, one.chunk));
  MD_CHECK(
      connections_.main->request(ControlType::register_request, static_cast<std::uint32_t>(asked_.size()), out.view()));
  ++connections_.key_requests;
  written_at_request_ = writes_.posted();
  return {};
}

Result<void> RdmaKeyRequests::take_answer() {
  if (writes_.posted() == written_at_request_) ++connections_.bare_key_requests;
  MD_TRY(const rdma::ControlMessage answer, connections_.main->await_answer());
  const auto results = rdma::decode_register_results(answer);
  if (results.size() != asked_.size())
    return wire_error(fmt::format("{} chunks were asked for and {} answered", asked_.size(), results.size()));
  for (std::size_t i = 0; i < asked_.size(); ++i)
    MD_CHECK(keys_.take_result(asked_[i].block, asked_[i].chunk, results[i]));
  return {};
}

Result<void> RdmaKeyRequests::register_ours() {
  for (const Wanted& one : asked_) {
    MD_TRY([[maybe_unused]] const std::uint32_t key, keys_.local(one.block, one.chunk));
  }
  return {};
}

}  // namespace migrationd::ram
