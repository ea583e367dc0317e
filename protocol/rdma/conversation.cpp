// SPDX-License-Identifier: Apache-2.0
#include "protocol/rdma/conversation.hpp"

#include <fmt/format.h>

namespace migrationd::rdma {
namespace {

bool is_answer(ControlType type) noexcept {
  return type == ControlType::ram_blocks_result || type == ControlType::register_result ||
         type == ControlType::unregister_finished;
}

Error unexpected(ControlType expected, const ControlMessage& message) {
  return wire_error(fmt::format("RDMA: Was expecting a {}, but got: {} ({}), length: {}", describe_control(expected),
                                control_name(message.type), static_cast<std::uint32_t>(message.type),
                                message.payload.size()));
}

}  // namespace

ControlType answer_to(ControlType request) noexcept {
  if (request == ControlType::ram_blocks_request) return ControlType::ram_blocks_result;
  if (request == ControlType::register_request) return ControlType::register_result;
  if (request == ControlType::unregister_request) return ControlType::unregister_finished;
  return ControlType::none;
}

void Conversation::sent(ControlType type) noexcept {
  peer_is_ready_ = false;
  awaited_ = answer_to(type);
}

Result<Incoming> Conversation::received(const ControlMessage& message) {
  if (message.type == ControlType::error)
    return Error(ErrorKind::peer, "RDMA: the peer gave up (control message ERROR)");
  if (!answered()) {
    if (message.type != awaited_) return unexpected(awaited_, message);
    awaited_ = ControlType::none;
    return Incoming::answer;
  }
  if (message.type == ControlType::ready) {
    if (peer_is_ready_) return wire_error("RDMA: READY comes twice without a message of ours in between");
    peer_is_ready_ = true;
    return Incoming::ready;
  }
  if (is_answer(message.type))
    return wire_error(fmt::format("RDMA: a {} that nobody asked for", describe_control(message.type)));
  if (asked_ > 0) {
    --asked_;
  } else if (ahead_ < unasked_) {
    // It stays ahead for good: the READY that it did not wait for lets another message come early.
    ++ahead_;
  } else {
    return wire_error(fmt::format("RDMA: a {} before we were ready for it", describe_control(message.type)));
  }
  return Incoming::message;
}

}  // namespace migrationd::rdma
