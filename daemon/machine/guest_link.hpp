// SPDX-License-Identifier: Apache-2.0
//
// GuestLink: the connection to an attached guest (docs/formats/guest-protocol.md).
//
// Both sides ask, so one thread reads: it hands a reply to the one question that waits for it, and what the guest says
// by itself to the listener. Nothing that arrives is believed: a packet that is cut, has the wrong descriptors, answers
// what nobody asked or comes out of turn ends the connection, and the guest is told why. Only one request of the
// guest's is under way at a time, and notices are worked off one by one, so a flood fills the guest's own socket and
// nothing here.
//
// A guest that hangs is known by its deadline: ask() then fails, and every later one fails at once until the answer
// came after all. What a late answer did is undone then by the question's `undo` (a STOP that was given up by a START),
// so that daemon and guest agree again on what runs. A guest that dies is known at once: its socket closes.
//
// Another daemon may go on with the guest (docs/formats/update.md): let_go() brings the link to rest, between two
// packets and with no request of either side under way; the socket is the other daemon's then, or take_up() makes it
// ours again. A link at rest ends without a word: the connection is not shut down, only our descriptor of it closed.
//
// Thread: ask, tell, answer, refuse from any; one question is under way at a time, others wait for it. The listener is
// called on the link's thread, which must not ask. Destroyed by any other thread; joins.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "guest/packet_io.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

namespace migrationd {

using GuestMessage = guest::Packet;

class GuestListener {
 public:
  virtual ~GuestListener() = default;
  // A request or a notice. An error ends the connection; the guest gets its text.
  virtual Result<void> on_message(GuestMessage message) = 0;
  // The connection is over; the last call.
  virtual void on_lost(const Error& why) = 0;
};

class GuestLink {
 public:
  // How often an answer to SAVE and LOAD may take the deadline.
  static constexpr unsigned state_patience = 6;

  // `socket`: a connected SEQPACKET socket. `deadline`: for an answer. The listener outlives it.
  static Result<std::shared_ptr<GuestLink>> start(UniqueFd socket, std::chrono::milliseconds deadline,
                                                  GuestListener& listener);
  // For a connection that another daemon serves still: at rest.
  static Result<std::shared_ptr<GuestLink>> prepare(UniqueFd socket, std::chrono::milliseconds deadline,
                                                    GuestListener& listener);
  GuestLink(const GuestLink&) = delete;
  GuestLink& operator=(const GuestLink&) = delete;
  ~GuestLink();

  // Nothing is read, asked or told any more: what the guest says waits in its socket. Waits `wait` at most for what is
  // under way. Error (ErrorKind::machine): the guest hangs or is gone; the link goes on. Neither on the link's thread
  // nor on one that its listener waits for.
  Result<void> let_go(std::chrono::milliseconds wait);
  // The link reads and asks again, beginning behind the serial of the last question, `last`.
  void take_up(std::uint32_t last) noexcept;
  // Of the last question. At rest.
  std::uint32_t last_serial() const;
  // A duplicate, for the other daemon.
  Result<UniqueFd> share_socket() const;

  // Sends a request and waits for its answer. `fd`: goes along, -1: none. `undo`: a whole packet to be sent when the
  // answer comes after the deadline; empty: nothing is to be undone. Errors (ErrorKind::machine): the guest refuses,
  // with its words; it does not answer; it is gone.
  template <class Body>
  Result<GuestMessage> ask(guest::Type type, const Body& body, unsigned patience = 1, int fd = -1, Bytes undo = {}) {
    return ask_packet(guest::packet(static_cast<std::uint16_t>(type), 0, body), type, patience, fd, std::move(undo));
  }
  // A notice. Dropped, with a warning, when the guest does not read.
  template <class Body>
  void tell(guest::Type type, const Body& body) noexcept {
    tell_packet(guest::packet(static_cast<std::uint16_t>(type), 0, body));
  }
  // To a request of the guest's. `fd`: -1 or what goes along.
  template <class Body>
  void answer(const guest::Header& request, const Body& body, int fd = -1) noexcept {
    send_answer(guest::packet(static_cast<std::uint16_t>(request.type | guest::reply_bit), request.serial, body), fd);
  }
  // With a body that is encoded already.
  void answer_raw(const guest::Header& request, ByteView body, int fd = -1) noexcept;
  void refuse(const guest::Header& request, const std::string& why) noexcept;

  // Why the connection is over; nothing: it stands.
  std::optional<Error> lost() const;
  // Ends it and waits for its thread: the listener is called no more, and every question fails. Not on that thread.
  void close() noexcept;
  // Ends it: the guest sees the daemon hang up. on_lost() follows.
  void hang_up() noexcept { request_stop(); }

 private:
  struct Question {
    std::uint32_t serial = 0;
    guest::Type type = guest::Type::stop;
    std::optional<GuestMessage> answer;
    Bytes undo;
  };

  GuestLink(UniqueFd socket, std::chrono::milliseconds deadline, GuestListener& listener,
            std::unique_ptr<StopSource> stop, UniqueFd wake, bool resting) noexcept;
  static Result<std::shared_ptr<GuestLink>> make(UniqueFd socket, std::chrono::milliseconds deadline,
                                                 GuestListener& listener, bool resting);
  void request_stop() noexcept;
  bool rest();
  Result<GuestMessage> ask_packet(Bytes packet, guest::Type type, unsigned patience, int fd, Bytes undo);
  Result<std::uint32_t> begin_question(guest::Type type, Bytes undo, std::chrono::steady_clock::time_point until);
  Result<GuestMessage> end_question(std::uint32_t serial, std::chrono::steady_clock::time_point until);
  void tell_packet(const Bytes& packet) noexcept;
  void send_answer(const Bytes& packet, int fd) noexcept;
  Result<void> send(const Bytes& packet, int fd, std::chrono::steady_clock::time_point until) const;
  void run();
  Result<void> take(GuestMessage message);
  Result<void> take_answer(GuestMessage message);
  void take_late(std::optional<Question> late, const GuestMessage& answer);
  Result<void> take_request(GuestMessage message);
  void end(Error why);

  UniqueFd socket_;
  const std::chrono::milliseconds deadline_;
  GuestListener& listener_;
  std::unique_ptr<StopSource> stop_;
  UniqueFd wake_;                            // eventfd: the reader shall look at resting_
  std::atomic<std::uint32_t> requested_{0};  // serial of the guest's request under way; 0: none

  // Between those who ask and the reader: a question is made by one and answered by the other, and both look at whether
  // the guest is there.
  mutable std::mutex state_;
  std::condition_variable changed_;
  std::optional<Question> question_;  // that somebody waits for
  std::optional<Question> overdue_;   // that nobody waits for any more
  std::uint32_t last_serial_ = 0;
  std::optional<Error> lost_;
  bool resting_;          // let go: by whoever asks for it
  bool at_rest_ = false;  // and the reader reads no more

  std::thread thread_;
};

}  // namespace migrationd
