// SPDX-License-Identifier: Apache-2.0
//
// ReturnPathReader: the source's ear. A thread reads what the destination says (stream.md section 9) and keeps the
// little that the mover wants to know: acknowledged the switchover? finished, and how?
//
// Thread: constructed and destroyed by the mover; the queries may be called by the mover at any time. The destructor
// shuts the channel down and joins.
#pragma once

#include "base/bytes.hpp"
#include "base/gate.hpp"
#include "base/stop.hpp"
#include "protocol/stream/return_path.hpp"
#include "transports/buffered.hpp"
#include "transports/channel.hpp"

#include <atomic>
#include <memory>
#include <string>
#include <thread>

namespace migrationd::migration {

enum class PeerAnswer : std::uint8_t {
  none,
  success,    // SHUT 0
  premature,  // SHUT 0 before it can have had everything
  failure,    // SHUT not 0
  lost,       // the connection ended, or what came was not a message
};

// SHUT with a failure: QEMU's words for it.
inline Error peer_failed() { return Error(ErrorKind::peer, "Sibling indicated error 1"); }

// Who serves a postcopy. All calls come from the reader's thread; an error ends the reading.
class PostcopyListener {
 public:
  virtual ~PostcopyListener() = default;
  virtual Result<void> on_request(const stream::reply::RequestPages& request) = 0;
  virtual void on_pong(std::uint32_t value) = 0;
  // The target pages of a block whose bitmap is announced; an error if none is due.
  virtual Result<std::uint64_t> on_bitmap_announced(const std::string& block) = 0;
  virtual Result<void> on_bitmap(const std::string& block, ByteView bitmap) = 0;
  virtual Result<void> on_resume_ack() = 0;
  // The connection has ended without an answer.
  virtual void on_lost(const Error& why) = 0;
};

class ReturnPathReader {
 public:
  // Channel and listener (null: no postcopy) outlive the reader.
  static Result<std::unique_ptr<ReturnPathReader>> start(transports::Channel& channel, StopSource& stop,
                                                         PostcopyListener* listener = nullptr);
  ~ReturnPathReader();

  PeerAnswer answer() const noexcept { return answer_.load(std::memory_order_acquire); }
  bool switchover_acknowledged() const noexcept { return acknowledged_.load(std::memory_order_acquire); }
  // The last bytes are about to go out: success is no longer premature. Before this it breaks the channel.
  void expect_success() noexcept { success_due_.store(true, std::memory_order_release); }
  // Blocks until an answer is there (also `lost`), or the stop.
  Result<void> wait_for_answer() const { return answered_->wait(stop_); }
  // The same, but not longer than `limit`; what is there then.
  PeerAnswer wait_for_answer(std::chrono::milliseconds limit) const;
  // Readable once an answer is there; for poll(2).
  int answered_fd() const noexcept { return answered_->fd(); }
  // Why the answer is neither `none` nor `success`; call only then.
  Error why() const;

 private:
  ReturnPathReader(transports::Channel& channel, StopSource& stop, PostcopyListener* listener,
                   std::unique_ptr<Gate> answered);
  void run();
  Result<PeerAnswer> read_messages();
  // What belongs to postcopy.
  Result<void> tell_listener(transports::BufferedReader& reader, const stream::ReturnMessage& message);
  Result<void> read_bitmap(transports::BufferedReader& reader, const std::string& block);
  void finish(PeerAnswer answer, Error why);

  transports::Channel& channel_;
  StopSource& stop_;
  PostcopyListener* listener_;
  std::unique_ptr<Gate> answered_;
  std::atomic<PeerAnswer> answer_{PeerAnswer::none};
  std::atomic<bool> acknowledged_{false};
  std::atomic<bool> success_due_{false};
  // Written before answered_ opens, read after.
  Error why_;
  std::thread thread_;
};

}  // namespace migrationd::migration
