// SPDX-License-Identifier: Apache-2.0
//
// Session: one client, from bytes to replies. What is said is decided by qmp::SessionMachine; this class moves bytes,
// keeps the pending batch of descriptors, and hands commands to the server.
//
// Reading ahead. Nothing is read past a request while it runs, unless the client enabled out-of-band execution; even
// then bytes that carry descriptors wait until no in-band command is left, so that a command never finds the
// descriptors of a later one. (QEMU reads up to eight requests ahead and lets the later batch close the earlier one.)
//
// The end. A client that closed its sending side still gets all replies; then the connection is closed.
//
// Thread: control.
#pragma once

#include "daemon/control/connection.hpp"
#include "daemon/control/event_bus.hpp"
#include "daemon/control/fd_registry.hpp"
#include "protocol/qmp/session_machine.hpp"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

namespace migrationd::control {

class Session;

// The server, as its sessions see it.
class SessionHost {
 public:
  virtual ~SessionHost() = default;
  // Runs the command when its turn comes; at once if it is out of band. Session::finish() is called with the result.
  virtual void run(Session& session, qmp::RunCommand command) = 0;
  // Called from the loop; the session may be destroyed.
  virtual void on_session_closed(Session& session, std::string_view why) = 0;
};

class Session final : public std::enable_shared_from_this<Session>, ConnectionListener, EventListener {
 public:
  Session(EventLoop& loop, EventBus& events, SessionHost& host, UniqueFd socket, FdRegistry& fds,
          const qmp::VersionInfo& version);
  ~Session() override;

  // Sends the greeting and begins to read.
  void start();
  void finish(const qmp::RunCommand& command, const qmp::QmpResult<qmp::OrderedJson>& result);

  FdRegistry& fds() noexcept { return fds_; }
  std::vector<UniqueFd>& passed() noexcept { return passed_; }
  Connection& connection() noexcept { return connection_; }
  bool negotiated() const noexcept { return machine_.wants_events(); }
  std::chrono::steady_clock::time_point connected_at() const noexcept { return connected_at_; }

 private:
  void on_input(std::string_view bytes, std::vector<UniqueFd> fds) override;
  void on_end_of_input() override;
  void on_closed(std::string_view why) override;
  void on_event(const std::string& line) override;

  // Feeds what was read, as far as the machine wants it; then reads on, or closes after the end.
  void pump();
  void carry_out(std::vector<qmp::Action> actions);

  EventBus& events_;
  SessionHost& host_;
  FdRegistry& fds_;
  Connection connection_;
  qmp::JsonFramer framer_;
  qmp::SessionMachine machine_;
  std::string input_;  // read, fed up to fed_
  std::size_t fed_ = 0;
  std::vector<UniqueFd> passed_;
  bool in_band_running_ = false;
  bool ended_ = false;
  bool pumping_ = false;
  std::chrono::steady_clock::time_point connected_at_ = std::chrono::steady_clock::now();
};

}  // namespace migrationd::control
