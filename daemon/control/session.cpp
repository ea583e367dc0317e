// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/session.hpp"

#include <utility>

namespace migrationd::control {

Session::Session(EventLoop& loop, EventBus& events, SessionHost& host, UniqueFd socket, FdRegistry& fds,
                 const qmp::VersionInfo& version)
    : events_(events), host_(host), fds_(fds), connection_(loop, std::move(socket), *this), machine_(version) {
  events_.add(*this);
}

Session::~Session() { events_.remove(*this); }

void Session::start() {
  connection_.send(machine_.greeting());
  pump();
}

void Session::on_input(std::string_view bytes, std::vector<UniqueFd> fds) {
  // A new batch closes what is left of the one before.
  if (!fds.empty()) passed_ = std::move(fds);
  input_.assign(bytes);
  fed_ = 0;
  pump();
}

void Session::on_end_of_input() {
  ended_ = true;
  pump();
}

void Session::on_closed(std::string_view why) {
  const auto self = shared_from_this();  // until the end of this call, whatever the host does
  host_.on_session_closed(*this, why);
}

void Session::on_event(const std::string& line) {
  if (machine_.wants_events()) connection_.send(line);
}

void Session::pump() {
  if (pumping_) return;
  pumping_ = true;
  bool hungry = false;
  while (!hungry && machine_.wants_input() && !connection_.is_closed()) {
    auto fed = framer_.feed(std::string_view(input_).substr(fed_));
    fed_ += fed.taken;
    if (fed.document) {
      carry_out(machine_.feed(std::move(*fed.document)));
    } else {
      hungry = fed_ == input_.size();
    }
  }
  pumping_ = false;
  if (!hungry) return;
  if (!ended_) return connection_.read(in_band_running_ ? Reading::bytes_only : Reading::anything);
  if (!in_band_running_) connection_.close_when_written();
}

void Session::carry_out(std::vector<qmp::Action> actions) {
  for (auto& action : actions) {
    if (auto* line = std::get_if<qmp::SendLine>(&action)) {
      connection_.send(std::move(line->line));
      continue;
    }
    auto& command = std::get<qmp::RunCommand>(action);
    if (!command.out_of_band) in_band_running_ = true;
    host_.run(*this, std::move(command));
  }
}

void Session::finish(const qmp::RunCommand& command, const qmp::QmpResult<qmp::OrderedJson>& result) {
  if (!command.out_of_band) in_band_running_ = false;
  carry_out(machine_.finished(command.serial, result));
  pump();
}

}  // namespace migrationd::control
