// SPDX-License-Identifier: Apache-2.0
//
// Conversation: whose turn is it? The rules of one connection's control messages, without a connection.
//
// Nobody sends before the peer said READY; an answer (to a request for blocks, a registration or its end) is sent
// without one. A READY is good for one message. Who waits for a message says READY first.
//
//     we send       wait for may_send(); then sent(type). For a request that has an answer: wait until answered().
//     we receive    said_ready(); then a message comes
//
// QEMU's destination writes the first message of its return path without waiting for our READY, and has one to spare
// from then on: `unasked` of a connection says how many messages may come that nobody asked for yet.
//
// Thread: pure state.
#pragma once

#include "base/result.hpp"
#include "protocol/rdma/control.hpp"

#include <cstdint>

namespace migrationd::rdma {

enum class Incoming : std::uint8_t {
  ready,    // may_send() now
  message,  // what we said READY for
  answer,   // to our request
};

// The answer that a type has; none if it has none.
ControlType answer_to(ControlType request) noexcept;

class Conversation {
 public:
  explicit Conversation(unsigned unasked = 0) noexcept : unasked_(unasked) {}

  // What a message is, now. Error: it has no business here: ErrorKind::wire, or ErrorKind::peer when it says that the
  // peer gave up.
  Result<Incoming> received(const ControlMessage& message);

  bool may_send() const noexcept { return peer_is_ready_; }
  // No answer is outstanding.
  bool answered() const noexcept { return awaited_ == ControlType::none; }
  // Requests, stream bytes, ...: uses the peer's READY up. Call only when may_send() and answered().
  void sent(ControlType type) noexcept;
  // Our READY is on its way; one message may come for it.
  void said_ready() noexcept { ++asked_; }
  // A READY of ours that no message has come for.
  bool is_asking() const noexcept { return asked_ > 0; }

 private:
  unsigned unasked_;  // more than was asked for, at most
  unsigned asked_ = 0;
  unsigned ahead_ = 0;  // messages that came before they were asked for
  bool peer_is_ready_ = false;
  ControlType awaited_ = ControlType::none;
};

}  // namespace migrationd::rdma
