// SPDX-License-Identifier: Apache-2.0
//
// Updater: this daemon replaced by a new process of its program, which goes on with machine, settings and sockets
// (docs/formats/update.md). The old side; the new one is daemon/update/inheritance.hpp.
//
//   1  control sockets and the guests' socket are held: who comes waits in their queues, what clients say waits here
//   2  the new program is started, beside us (successor.hpp), with our command line and one end of a socket pair (the
//   cpr channel) 3  everything it needs goes over by descriptor: memory, sockets, settings, the other end of the main
//   channel 4  it has set itself up and closes the cpr channel 5  the machine stands still, or an attached guest's
//   connection is let go of; the stream without pages goes out 6  it answers: from this byte on it is the daemon.
//   Before it, and whatever fails, it is killed, its end is waited
//      for, and only then we go on as if nothing had been: there are never two
//   7  the service manager hears of the new main process, the client that asked gets its answer, and we end
//
// Nothing in it waits on the control thread.
//
// Thread: control.
#pragma once

#include "base/result.hpp"
#include "daemon/control/control_server.hpp"
#include "daemon/control/event_loop.hpp"
#include "daemon/guest_door.hpp"
#include "daemon/migration/daemon_service.hpp"
#include "daemon/update/successor.hpp"

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace migrationd::update {

struct UpdaterOptions {
  std::string program;                 // that this process was started from
  std::vector<std::string> arguments;  // its command line, without the program
  bool allow_binary = true;            // another program may be named
  std::string version;
};

class Updater {
 public:
  // `guests` is null without an attached machine. `on_replaced`: the answer is queued, end now. All outlive this.
  Updater(UpdaterOptions options, control::EventLoop& loop, migration::DaemonService& service,
          control::ControlServer& server, GuestDoor* guests, std::function<void()> on_replaced);
  ~Updater();

  void start(const qmp::UpdateArgs& args, control::UpdateDone done);
  // Another daemon has taken over: nothing here is ours to report or to remove.
  bool replaced() const noexcept { return replaced_; }

 private:
  struct Attempt;

  Result<void> begin(const qmp::UpdateArgs& args);
  Result<std::string> program_of(const qmp::UpdateArgs& args) const;
  Result<std::vector<cpr::NamedDescriptor>> pack(const std::string& machine, UniqueFd main) const;
  void finish(const Result<void>& outcome);
  void time_out();

  const UpdaterOptions options_;
  migration::DaemonService& service_;
  control::ControlServer& server_;
  GuestDoor* const guests_;
  std::function<void()> on_replaced_;
  std::unique_ptr<control::Timer> patience_;
  std::unique_ptr<Attempt> attempt_;  // under way
  bool replaced_ = false;
};

// The command line of the new daemon: ours without what says how a daemon begins (--incoming, --paused, --take-over).
// `waits`: no machine goes along, and ours would take one.
std::vector<std::string> successor_arguments(const std::vector<std::string>& own, bool waits);

}  // namespace migrationd::update
