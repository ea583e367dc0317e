// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/control_server.hpp"

#include "base/limits.hpp"
#include "base/log.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd::control {
namespace {

using namespace std::chrono_literals;

// After a failed accept (no descriptors left), and while all places are taken.
constexpr auto accept_pause = 100ms;
// What is left to write when the process ends: a client that reads gets it.
constexpr auto last_output_wait = 200ms;

}  // namespace

ControlServer::ControlServer(EventLoop& loop, EventBus& events, migration::MigrationService& service,
                             ControlOptions options, std::function<void()> on_quit)
    : loop_(loop),
      events_(events),
      state_(events, service, std::move(options)),
      dispatcher_(state_),
      command_line_fds_(state_.fd_sets),
      on_quit_(std::move(on_quit)),
      accept_timer_(loop.timer()) {}

ControlServer::~ControlServer() { shut_down(); }

Result<void> ControlServer::listen(const SocketOptions& options) {
  MD_TRY(ListeningSocket socket, ListeningSocket::bind(options));
  return add_listener(std::move(socket));
}

Result<void> ControlServer::adopt(UniqueFd listening) {
  MD_TRY(ListeningSocket socket, ListeningSocket::adopt(std::move(listening)));
  return add_listener(std::move(socket));
}

Result<void> ControlServer::inherit(UniqueFd listening, bool owns_path) {
  MD_TRY(ListeningSocket socket, ListeningSocket::adopt(std::move(listening)));
  MD_CHECK(add_listener(std::move(socket)));
  listeners_.back()->takes_path = owns_path;
  return {};
}

Result<std::vector<ControlServer::SharedSocket>> ControlServer::share_sockets() const {
  std::vector<SharedSocket> out;
  for (const auto& listener : listeners_) {
    UniqueFd fd(::fcntl(listener->socket.fd(), F_DUPFD_CLOEXEC, 0));
    if (!fd) return Error::from_errno("hand the control socket over");
    out.push_back({std::move(fd), listener->socket.owns_path()});
  }
  return out;
}

void ControlServer::hold() { held_ = true; }

void ControlServer::resume() {
  held_ = false;
  for (auto& listener : listeners_) {
    if (std::exchange(listener->takes_path, false)) listener->socket.own_path();
  }
  arm_all();
  for (Waiting& one : std::exchange(waiting_, {})) {
    if (const auto session = one.session.lock()) run(*session, std::move(one.command));
  }
}

void ControlServer::give_up_sockets() {
  state_.quitting = true;
  accept_timer_->cancel();
  // Their descriptors may still be named by sessions; nobody is let in by them.
  for (auto& listener : listeners_) {
    listener->watch.reset();
    listener->socket.disown_path();
  }
  waiting_.clear();
}

Result<void> ControlServer::add_listener(ListeningSocket socket) {
  auto listener = std::make_unique<Listener>(std::move(socket), state_.fd_sets);
  listener->watch = loop_.watch(listener->socket.fd());
  if (!listener->watch) return machine_error(fmt::format("{}: cannot be polled", listener->socket.name()));
  log::info("control socket {}", listener->socket.name());
  arm(*listener);
  listeners_.push_back(std::move(listener));
  return {};
}

void ControlServer::arm(Listener& listener) {
  if (listener.armed) return;
  listener.armed = true;
  listener.watch->when_readable([this, &listener] {
    listener.armed = false;
    accept_one(listener);
  });
}

void ControlServer::arm_all() {
  for (auto& listener : listeners_) arm(*listener);
}

void ControlServer::pause_accepting(std::chrono::milliseconds time) {
  accept_timer_->start(time, [this] { arm_all(); });
}

// One per call of the loop, so that a flood of connections leaves turns to the clients that are there.
void ControlServer::accept_one(Listener& listener) {
  if (held_) return;  // resume() arms it again
  if (!has_room()) return pause_accepting(accept_pause);
  auto client = listener.socket.accept();
  if (!client) {
    log::warning(client.error().text());
    return pause_accepting(accept_pause);
  }
  if (*client) {
    auto session =
        std::make_shared<Session>(loop_, events_, *this, std::move(*client), listener.fds, state_.options.version);
    sessions_.push_back(session);
    log::debug("control client connected ({} now)", sessions_.size());
    session->start();
  }
  arm(listener);
}

bool ControlServer::has_room() {
  if (sessions_.size() < limits::qmp_clients) return true;
  // Sessions are in the order of their arrival: the first idle one is the oldest.
  const auto latest = std::chrono::steady_clock::now() - limits::qmp_negotiation_wait;
  const auto idle = std::find_if(sessions_.begin(), sessions_.end(), [&](const auto& session) {
    return !session->negotiated() && session->connected_at() <= latest;
  });
  if (idle == sessions_.end()) return false;
  log::warning("control client dropped: connected long ago, never negotiated, and its place is needed");
  sessions_.erase(idle);
  return true;
}

void ControlServer::run(Session& session, qmp::RunCommand command) {
  if (command.out_of_band) return execute(session, command);
  // One turn of the loop each: posts are run in the order they were made, whoever made them.
  loop_.post([this, alive = alive_, weak = session.weak_from_this(), command = std::move(command)] {
    if (!*alive) return;
    if (const auto waiting = weak.lock()) execute(*waiting, command);
  });
}

void ControlServer::execute(Session& session, const qmp::RunCommand& command) {
  if (state_.quitting) return;  // what was sent behind `quit` is never answered
  if (held_ && !command.out_of_band) return waiting_.push_back({session.weak_from_this(), command});
  Request request{session.fds(), session.passed()};
  dispatcher_.run(*command.command, command.arguments, request,
                  [weak = session.weak_from_this(), command](const qmp::QmpResult<qmp::OrderedJson>& result) {
                    if (const auto waiting = weak.lock()) waiting->finish(command, result);
                  });
  if (!state_.quitting) return;
  loop_.post([this, alive = alive_] {
    if (*alive) on_quit_();
  });
}

void ControlServer::on_session_closed(Session& session, std::string_view why) {
  log::debug("control client gone: {}", why);
  std::erase_if(sessions_, [&](const auto& held) { return held.get() == &session; });
  if (!state_.quitting) arm_all();
}

void ControlServer::shut_down() {
  if (!*alive_) return;
  *alive_ = false;
  accept_timer_->cancel();
  listeners_.clear();
  const auto deadline = std::chrono::steady_clock::now() + last_output_wait;
  for (const auto& session : sessions_) session->connection().flush_until(deadline);
  sessions_.clear();
}

}  // namespace migrationd::control
