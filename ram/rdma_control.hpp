// SPDX-License-Identifier: Apache-2.0
//
// RdmaControl: the control messages of one RDMA connection (docs/formats/rdma.md): protocol/rdma's rules put to work on
// a link.
//
// Receives. A message that finds no posted receive breaks the connection. So all slots are posted before the connection
// is made; the one of a READY is posted again at once, that of another message before the READY that asks for the
// next. At most two messages, an answer and a READY can be under way, and there are as many slots.
//
// Sends. A message is copied into registered memory and posted; its completion is awaited before the next message needs
// the place, and by finish(). A READY has memory of its own that never changes, and is awaited by nobody.
//
// Silence. A peer that owes us a word (READY, an answer) has so long for it; one that does not (the source between two
// rounds) has for ever, but it must be there: after a while of silence an empty write asks its adapter, which answers
// without the peer's CPU, and whose failure breaks the connection.
//
// All completions of the link pass through here; those of page writes are handed to who posted them.
//
// Thread: one user at a time; disconnect() any thread.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/rdma/conversation.hpp"
#include "transports/rdma_link.hpp"

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

namespace migrationd::ram {

struct RdmaPatience {
  // Until the peer is ready for a message. It may be loading a device meanwhile.
  std::chrono::milliseconds ready = std::chrono::seconds(120);
  // Until it answers. It may be registering all of its memory: 1 TiB takes minutes.
  std::chrono::milliseconds answer = std::chrono::seconds(900);
  // Silence after which we ask whether it is there.
  std::chrono::milliseconds silence = std::chrono::seconds(5);
};

// Who posts writes on the link.
class RdmaWriteListener {
 public:
  virtual ~RdmaWriteListener() = default;
  // A signalled write is complete.
  virtual void written(std::uint64_t id) noexcept = 0;
};

class RdmaControl {
 public:
  struct Options {
    unsigned unasked = 0;  // Conversation's
    RdmaPatience patience = {};
  };

  // Takes a link that is not established, and posts its receives. `stop` outlives it.
  static Result<std::unique_ptr<RdmaControl>> make(std::unique_ptr<transports::RdmaLink> link, StopSource& stop,
                                                   Options options);
  ~RdmaControl();

  transports::RdmaLink& link() noexcept { return *link_; }
  const transports::RdmaLink& link() const noexcept { return *link_; }
  // Writes on the link must not have this id.
  static constexpr std::uint64_t own_write_id = ~std::uint64_t{0};
  // Null: nobody. Before the first write; it outlives the control or the next call.
  void set_write_listener(RdmaWriteListener* listener) noexcept { writes_ = listener; }

  // --- a message -------------------------------------------------------------------------------------------------
  // When the peer is ready for it. Not the types that are answers.
  Result<void> send(rdma::ControlType type, std::uint32_t repeat, std::span<const ByteView> payload);
  Result<void> send(rdma::ControlType type, ByteView payload = {}) { return send(type, 1, {&payload, 1}); }
  // send() of a type that has an answer. What is done next is done while the peer works; messages without an answer
  // wait for this one's.
  Result<void> request(rdma::ControlType type, std::uint32_t repeat, ByteView payload);
  // The answer to the last request(), once; valid until the next call of a member that receives, or request().
  Result<rdma::ControlMessage> await_answer();
  // Both at once.
  Result<rdma::ControlMessage> ask(rdma::ControlType type, std::uint32_t repeat, ByteView payload);
  // To the request just received.
  Result<void> answer(rdma::ControlType type, std::uint32_t repeat, ByteView payload);
  // What was sent has arrived.
  Result<void> finish();

  // Says READY and waits, however long; nothing: the peer has disconnected. Valid until the next call.
  Result<std::optional<rdma::ControlMessage>> receive();
  // The first message of a peer that does not wait for our READY with it: none is said.
  Result<std::optional<rdma::ControlMessage>> receive_unasked();
  // As receive(), but not longer than `limit`: false when nothing came and the peer is there.
  Result<bool> wait_for_message(std::chrono::milliseconds limit);
  // Says READY if that was not done since the last message: for who polls the link's descriptor.
  Result<void> ask_for_message();
  bool has_message() const noexcept { return !arrived_.empty(); }

  // Was the last QEMU FILE message written by one of the releases that count it as a record (7.2 does, 10.0 does not)?
  // Any thread.
  bool peer_is_old() const noexcept { return peer_is_old_.load(std::memory_order_relaxed); }

  // --- completions -----------------------------------------------------------------------------------------------
  // Takes what has completed; never waits.
  Result<void> pump();
  // Until `done`; false: the peer has disconnected before. Negative limit: no limit. `what` is awaited, for the error.
  Result<bool> wait_until(const std::function<bool()>& done, std::chrono::milliseconds limit, std::string_view what);

  // The last word of a side that fails: ERROR, if it can be had in a moment. The stop does not end it.
  void say_error() noexcept;
  // A message beside the order of things, for the last word on a return path: only if the peer is ready for it.
  void say_last(rdma::ControlType type, ByteView payload) noexcept;
  void disconnect() noexcept { link_->disconnect(); }

 private:
  static constexpr std::size_t slots = 4;
  struct Arrived {
    std::size_t slot = 0;
    rdma::ControlMessage message;
  };

  RdmaControl(std::unique_ptr<transports::RdmaLink> link, StopSource& stop, Options options);
  Result<void> set_up();
  std::byte* slot_memory(std::size_t slot) const noexcept;
  Result<void> post_slot(std::size_t slot);
  Result<void> post_message(rdma::ControlType type, std::uint32_t repeat, std::span<const ByteView> payload);
  Result<void> take(const transports::RdmaCompletion& completion);
  Result<void> take_receive(std::size_t slot, std::uint32_t length);
  Result<void> release();
  Result<std::optional<rdma::ControlMessage>> receive(bool ask);
  Result<bool> await_message(bool ask);
  Error fail(Error why);
  Result<void> prove_alive();
  void flush_briefly() noexcept;
  Error gone(std::string_view what) const;

  StopSource& stop_;
  const Options options_;
  // The link goes first: nothing is received into memory that is not there.
  std::unique_ptr<std::byte[]> receive_memory_;
  std::unique_ptr<std::byte[]> send_memory_;  // one message, and READY behind it
  std::unique_ptr<transports::RdmaRegion> receive_region_;
  std::unique_ptr<transports::RdmaRegion> send_region_;
  std::unique_ptr<transports::RdmaLink> link_;

  rdma::Conversation conversation_;
  std::deque<Arrived> arrived_;
  std::optional<Arrived> answer_;
  rdma::ControlType requested_ = rdma::ControlType::none;  // last
  std::optional<std::size_t> held_;                        // the slot of what receive() or await_answer() gave out
  std::optional<Error> failure_;                           // of the connection or the peer: it stays
  bool sending_ = false;
  bool asking_alive_ = false;
  std::chrono::steady_clock::time_point asked_alive_at_{};
  std::atomic<bool> peer_is_old_{false};
  RdmaWriteListener* writes_ = nullptr;
  std::array<transports::RdmaCompletion, 32> completions_;
};

}  // namespace migrationd::ram
