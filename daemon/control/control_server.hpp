// SPDX-License-Identifier: Apache-2.0
//
// ControlServer: the control sockets and all clients (qmp.md 5).
//
//   EventLoop loop;
//   EventBus events;
//   DaemonService service(..., events, [&loop](auto job) { loop.post(std::move(job)); });
//   ControlServer server(loop, events, service, options, [&loop] { loop.stop(); });
//   server.listen({path, mode, group});          or  server.adopt(descriptor from the service manager)
//   loop.run();                                  until `quit`, or a signal's handler stops it
//   server.shut_down();                          last lines out, clients see the end
//
// Clients are served at the same time, each with its own negotiation, queue and descriptors; in-band commands of all
// of them are run one at a time in the order they arrived, so that a handler's checks and effects are one step.
// Out-of-band commands run at once.
//
// At limits::qmp_clients connections further ones wait in the kernel's queue; a client that has not negotiated for
// limits::qmp_negotiation_wait gives way to them.
//
// Thread: control.
#pragma once

#include "daemon/control/control_state.hpp"
#include "daemon/control/dispatcher.hpp"
#include "daemon/control/event_loop.hpp"
#include "daemon/control/listening_socket.hpp"
#include "daemon/control/session.hpp"

#include <functional>
#include <memory>
#include <vector>

namespace migrationd::control {

class ControlServer final : public SessionHost {
 public:
  // `on_quit` is called from the loop after the reply to `quit` was queued.
  ControlServer(EventLoop& loop, EventBus& events, migration::MigrationService& service, ControlOptions options,
                std::function<void()> on_quit);
  ~ControlServer() override;

  Result<void> listen(const SocketOptions& options);
  Result<void> adopt(UniqueFd listening);
  // That of a daemon that this one is to replace; between hold() and resume(), which takes the path over too if that
  // daemon made it (`owns_path`).
  Result<void> inherit(UniqueFd listening, bool owns_path);

  // --- this daemon is replaced by another (daemon/update) ---------------------------------------------------
  struct SharedSocket {
    UniqueFd fd;  // a duplicate
    bool owns_path;
  };
  Result<std::vector<SharedSocket>> share_sockets() const;
  // Nobody is let in and no command begins: who connects waits in the socket's queue, what is said waits here. Both go
  // on with resume(), or with another daemon.
  void hold();
  void resume();
  // The sockets are the other daemon's: nobody is let in any more, the paths stay, what waits is dropped.
  void give_up_sockets();

  // For a signal: SHUTDOWN to all clients. The caller then stops the loop.
  void announce_shutdown(qmp::ShutdownCause reason) { events_.shutdown(reason); }
  // Ends all clients after their last output, which is waited for shortly. No callback runs afterwards.
  void shut_down();

  // Descriptors for addresses on the command line (--incoming): the first socket's names, and all sets.
  FdRegistry& fds() { return command_line_fds_; }
  std::size_t clients() const noexcept { return sessions_.size(); }

 private:
  struct Listener {
    Listener(ListeningSocket bound, FdSets& sets) : socket(std::move(bound)), fds(sets) {}
    ListeningSocket socket;
    FdRegistry fds;
    std::unique_ptr<FdWatch> watch;
    bool armed = false;
    bool takes_path = false;  // with resume()
  };

  Result<void> add_listener(ListeningSocket socket);
  void arm(Listener& listener);
  void arm_all();
  void accept_one(Listener& listener);
  bool has_room();
  void pause_accepting(std::chrono::milliseconds time);

  void run(Session& session, qmp::RunCommand command) override;
  void on_session_closed(Session& session, std::string_view why) override;
  void execute(Session& session, const qmp::RunCommand& command);

  EventLoop& loop_;
  EventBus& events_;
  ControlState state_;
  Dispatcher dispatcher_;
  FdRegistry command_line_fds_;
  std::function<void()> on_quit_;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::vector<std::shared_ptr<Session>> sessions_;
  std::unique_ptr<Timer> accept_timer_;
  bool held_ = false;
  struct Waiting {
    std::weak_ptr<Session> session;
    qmp::RunCommand command;
  };
  std::vector<Waiting> waiting_;  // while held; one of each session at most, two with out-of-band execution
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace migrationd::control
