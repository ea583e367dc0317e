// SPDX-License-Identifier: Apache-2.0
//
// SessionMachine: what one client connection says and may ask (qmp.md 2, 3 and 4). Pure: documents in, actions out.
//
//   send(machine.greeting());
//   while (machine.wants_input()) for each document of the framer: carry_out(machine.feed(std::move(document)));
//   when a command has finished: carry_out(machine.finished(serial, result));
//   for an event: if (machine.wants_events()) send(write_line(event));
//
// In-band requests of a session run one at a time, in order; errors keep their place in that order. With out-of-band
// execution negotiated, up to limits::qmp_queued_requests wait behind the running one, and `exec-oob` requests are
// handed out at once. Without it nothing is wanted while a request is being carried out.
//
// Thread: one owner.
#pragma once

#include "base/limits.hpp"
#include "protocol/qmp/commands.hpp"
#include "protocol/qmp/json_framer.hpp"

#include <deque>
#include <map>

namespace migrationd::qmp {

// A line to be sent as it is (CR LF included).
struct SendLine {
  std::string line;
};

// A command to be run: dispatch(handlers, *command, arguments), then finished(serial, result).
struct RunCommand {
  std::uint64_t serial = 0;
  const CommandInfo* command = nullptr;
  Json arguments;  // an object; empty when the request had none
  bool out_of_band = false;
  // Bytes of the connection up to the request's last one: descriptors that came later are not for this command.
  std::uint64_t end = 0;
};

using Action = std::variant<SendLine, RunCommand>;

class SessionMachine {
 public:
  explicit SessionMachine(VersionInfo version, bool offer_oob = true);

  std::string greeting() const;

  // False while no further document may be fed: stop reading the socket. Documents fed all the same are queued.
  bool wants_input() const noexcept;
  // Negotiated: events are delivered from now on, earlier ones are not replayed.
  bool wants_events() const noexcept { return negotiated_; }
  bool oob_enabled() const noexcept { return oob_enabled_; }

  [[nodiscard]] std::vector<Action> feed(Document document);
  // `result` is the value for "return" (encode(...) of the command's result) or the error.
  [[nodiscard]] std::vector<Action> finished(std::uint64_t serial, const QmpResult<OrderedJson>& result);

 private:
  bool is_out_of_band(const Json& document) const;
  void start(Document document, bool out_of_band, std::vector<Action>& actions);
  void start_next(std::vector<Action>& actions);
  QmpResult<const CommandInfo*> check(const Json& request) const;
  QmpResult<> check_shape(const Json& request) const;
  QmpResult<OrderedJson> negotiate(const Json& arguments);

  VersionInfo version_;
  bool offer_oob_;
  bool negotiated_ = false;
  bool oob_enabled_ = false;
  std::uint64_t next_serial_ = 1;
  std::optional<std::uint64_t> running_;              // the in-band command being carried out
  std::map<std::uint64_t, std::optional<Json>> ids_;  // of commands handed out
  std::deque<Document> queue_;                        // in-band, not started
};

// {"return": ..., "id": ...} or {"id": ..., "error": {"class": ..., "desc": ...}}.
OrderedJson make_reply(const QmpResult<OrderedJson>& result, const std::optional<Json>& id);

}  // namespace migrationd::qmp
