// SPDX-License-Identifier: Apache-2.0
//
// GuestDoor: the socket at which a guest attaches (--machine attached,socket=PATH), and the one guest that did.
//
// A client is looked at (SO_PEERCRED), registers what it is on its link's thread (machine/guest_registration.hpp), and
// with READY becomes the daemon's machine, here on control. While one is attached, or the machine of one that is gone
// is still in use, others are refused with a sentence. Who connects and does not get to READY in time gives its place
// up.
//
// Thread: control. What the link's thread has to say is posted, with the number of the guest it is about: a message of
// a guest that has been replaced finds nobody.
#pragma once

#include "daemon/control/event_loop.hpp"
#include "daemon/control/listening_socket.hpp"
#include "daemon/machine/attached.hpp"
#include "daemon/migration/guest_keeper.hpp"

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace migrationd {

struct AttachedOptions {
  control::SocketOptions socket;
  std::optional<uid_t> uid;  // who may attach, beside our own user and root
  std::chrono::milliseconds deadline{5000};
};

// The words of --machine attached,...
Result<AttachedOptions> parse_attached_options(std::string_view text);

class GuestDoor {
 public:
  // `name`: of this program, for guests. `on_empty`: a guest that waits for a machine is there. All of them outlive the
  // door.
  GuestDoor(control::EventLoop& loop, migration::GuestKeeper& keeper, AttachedOptions options, std::string name,
            std::function<void()> on_empty);
  ~GuestDoor();

  Result<void> open();
  // In the place of open(): the socket of a daemon that this one is to replace; between hold() and resume(), which
  // takes the path over too if that daemon made it (`owns_path`).
  Result<void> inherit(UniqueFd listening, bool owns_path);
  // The guest that daemon serves, for its connection and its registration: the machine is the keeper's, and the guest
  // is served here from Machine::take_up() on. Before inherit().
  Result<std::unique_ptr<AttachedMachine>> expect(UniqueFd connection, RegisteredGuest guest);

  // --- this daemon is replaced by another -----------------------------------------------------------------
  struct SharedSocket {
    UniqueFd fd;  // a duplicate; invalid: there is none
    bool owns_path = false;
  };
  Result<SharedSocket> share_socket() const;
  // A guest is here, or on its way in.
  bool has_visitor() const noexcept { return visitor_ != nullptr; }
  // Nobody is let in: who connects waits in the socket's queue, until resume() or for the other daemon.
  void hold() noexcept { held_ = true; }
  void resume();
  // The socket is the other daemon's, and its path stays.
  void give_up_socket() noexcept;

  // No guest is taken any more, and the one that is here is let go; its machine is no longer used.
  void close() noexcept;

 private:
  class Visitor;

  Result<void> listen(control::ListeningSocket socket);
  void arm();
  void accept_one();
  void greet(UniqueFd client);
  Result<void> check_peer(int client) const;
  void take(std::uint64_t number, GuestMessage message);
  void take_ready(const guest::Header& request, RegisteredGuest guest, std::shared_ptr<ram::GivenBackPages> given_back);
  void take_request(const GuestMessage& message);
  void take_lost(std::uint64_t number, const Error& why);
  void let_go(std::uint64_t number);

  control::EventLoop& loop_;
  migration::GuestKeeper& keeper_;
  const AttachedOptions options_;
  const std::string name_;
  std::function<void()> on_empty_;
  std::optional<control::ListeningSocket> listener_;
  std::unique_ptr<control::FdWatch> watch_;
  std::unique_ptr<control::Timer> patience_;  // with a guest that registers
  std::unique_ptr<control::Timer> pause_;     // of accepting
  std::unique_ptr<Visitor> visitor_;          // the one guest
  AttachedMachine* machine_ = nullptr;        // the keeper's, while it has it
  std::uint64_t visitors_ = 0;
  bool held_ = false;
  bool takes_path_ = false;                                     // with resume()
  bool knocked_ = false;                                        // while held: the watch is to be armed again
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for what was posted and comes too late
};

}  // namespace migrationd
