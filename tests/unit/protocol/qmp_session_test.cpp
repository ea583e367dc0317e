// SPDX-License-Identifier: Apache-2.0
// One client connection as a story: what comes in, what goes out, what is run.
#include "protocol/qmp/encode.hpp"
#include "protocol/qmp/events.hpp"
#include "protocol/qmp/json_writer.hpp"
#include "protocol/qmp/session_machine.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::qmp;

namespace {

// Feeds text through a framer; replies become lines, commands to be run "run NAME", out of band "oob NAME".
class Session {
 public:
  explicit Session(bool offer_oob = true) : machine_({{10, 0, 13}, "test"}, offer_oob) {}

  std::vector<std::string> say(std::string_view text) {
    std::vector<std::string> log;
    while (true) {
      auto fed = framer_.feed(text);
      text.remove_prefix(fed.taken);
      if (!fed.document) return log;
      take(machine_.feed(std::move(*fed.document)), log);
    }
  }
  std::string say_one(std::string_view text) {
    const auto log = say(text);
    REQUIRE(log.size() == 1);
    return log[0];
  }
  // The oldest running command (or the out-of-band one of that name) ends with {}.
  std::vector<std::string> finish(std::string_view name) {
    for (auto it = running_.begin(); it != running_.end(); ++it) {
      if (it->command->name != name) continue;
      const auto serial = it->serial;
      running_.erase(it);
      std::vector<std::string> log;
      take(machine_.finished(serial, QmpResult<OrderedJson>(OrderedJson::object())), log);
      return log;
    }
    FAIL("nothing of that name runs");
    return {};
  }
  Session& negotiated(std::string_view arguments = "{}") {
    CHECK(say_one("{\"execute\":\"qmp_capabilities\",\"arguments\":" + std::string(arguments) + "}") ==
          "{\"return\": {}}");
    return *this;
  }
  SessionMachine& machine() { return machine_; }
  std::vector<RunCommand>& running() { return running_; }

 private:
  void take(std::vector<Action> actions, std::vector<std::string>& log) {
    for (auto& action : actions) {
      if (auto* line = std::get_if<SendLine>(&action)) {
        REQUIRE(line->line.ends_with("\r\n"));
        log.push_back(line->line.substr(0, line->line.size() - 2));
      } else {
        auto& run = std::get<RunCommand>(action);
        log.push_back((run.out_of_band ? "oob " : "run ") + std::string(run.command->name));
        running_.push_back(std::move(run));
      }
    }
  }

  SessionMachine machine_;
  JsonFramer framer_;
  std::vector<RunCommand> running_;
};

std::string error(std::string_view desc, std::string_view error_class = "GenericError", std::string_view id = "") {
  return "{" + (id.empty() ? std::string() : "\"id\": " + std::string(id) + ", ") + "\"error\": {\"class\": \"" +
         std::string(error_class) + "\", \"desc\": \"" + std::string(desc) + "\"}}";
}

}  // namespace

TEST_CASE("SessionMachine.greets_with_the_version_and_oob") {
  CHECK(Session().machine().greeting() ==
        "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 10, \"minor\": 0, \"micro\": 13}, \"package\": \"test\"}, "
        "\"capabilities\": [\"oob\"]}}\r\n");
  CHECK(Session(false).machine().greeting().ends_with("\"capabilities\": []}}\r\n"));
}

TEST_CASE("SessionMachine.accepts_nothing_before_the_negotiation") {
  Session s;
  const auto expecting = "Expecting capabilities negotiation with 'qmp_capabilities'";
  CHECK(s.say_one(R"({"execute":"query-status","id":7})") == error(expecting, "CommandNotFound", "7"));
  CHECK(s.say_one(R"({"execute":"bogus","arguments":{"x":1}})") == error(expecting, "CommandNotFound"));
  CHECK(s.say_one(R"({"arguments":{}})") == error("QMP input lacks member 'execute'"));
  CHECK(s.say_one(R"({"exec-oob":"yank"})") == error("QMP input member 'exec-oob' is unexpected"));
  CHECK(s.say_one("[]") == error("QMP input must be a JSON object"));
  CHECK_FALSE(s.machine().wants_events());
}

TEST_CASE("SessionMachine.keeps_negotiating_after_a_mistake") {
  const auto ask = [](Session& s, std::string_view arguments) {
    return s.say_one("{\"execute\":\"qmp_capabilities\",\"arguments\":" + std::string(arguments) + "}");
  };
  Session s;
  CHECK(ask(s, R"({"enable":["foo"]})") == error("Parameter 'null' does not accept value 'foo'"));
  CHECK(ask(s, R"({"enable":"oob"})") == error("Invalid parameter type for 'enable', expected: array"));
  CHECK(ask(s, R"({"x":1})") == error("Parameter 'x' is unexpected"));
  CHECK_FALSE(s.machine().wants_events());
  CHECK(ask(s, R"({"enable":["oob","oob"]})") == "{\"return\": {}}");
  CHECK(s.machine().wants_events());
  CHECK(s.machine().oob_enabled());
  CHECK(ask(s, "{}") == error("Capabilities negotiation is already complete, command ignored", "CommandNotFound"));
  Session without(false);
  CHECK(ask(without, R"({"enable":["oob"]})") == error("Capability oob not available"));
}

TEST_CASE("SessionMachine.refuses_malformed_requests_in_qemus_words") {
  Session s;
  s.negotiated();
  const std::vector<std::pair<std::string, std::string>> table = {
      {"12 ", error("QMP input must be a JSON object")},
      {R"({"execute":1,"id":"x"})", error("QMP input member 'execute' must be a string", "GenericError", "\"x\"")},
      {R"({"execute":"stop","exec-oob":"stop"})", error("QMP input member 'exec-oob' is unexpected")},
      {R"({"execute":"stop","arguments":null})", error("QMP input member 'arguments' must be an object")},
      {R"({"execute":"stop","arguments":[]})", error("QMP input member 'arguments' must be an object")},
      {R"({"execute":"stop","foo":1})", error("QMP input member 'foo' is unexpected")},
      {R"({"id":null})", error("QMP input lacks member 'execute'", "GenericError", "null")},
      {R"({"execute":"migrate-cancel"})", error("The command migrate-cancel has not been found", "CommandNotFound")},
      {R"({"execute":"STOP"})", error("The command STOP has not been found", "CommandNotFound")},
      {R"({"execute":""})", error("The command  has not been found", "CommandNotFound")},
      {R"({"execute":"a","execute":"b"})", error("JSON parse error, duplicate key")},
  };
  for (const auto& [input, answer] : table) {
    INFO(input);
    CHECK(s.say_one(input) == answer);
  }
  Session oob;
  oob.negotiated(R"({"enable":["oob"]})");
  CHECK(oob.say_one(R"({"execute":"stop","exec-oob":"stop"})") ==
        error("QMP input member 'execute' clashes with 'exec-oob'"));
  CHECK(oob.say_one(R"({"exec-oob":"stop","id":1})") ==
        error("The command stop does not support OOB", "GenericError", "1"));
  CHECK(oob.say_one(R"({"exec-oob":1})") == error("QMP input member 'exec-oob' must be a string"));
}

TEST_CASE("SessionMachine.echoes_any_id_and_puts_it_where_qemu_does") {
  Session s;
  s.negotiated();
  CHECK(s.say_one(R"({"execute":"stop","id":[1,{"a":0.1}]})") == "run stop");
  CHECK(s.finish("stop") == std::vector<std::string>{R"({"return": {}, "id": [1, {"a": 0.10000000000000001}]})"});
}

TEST_CASE("SessionMachine.runs_one_command_at_a_time_without_oob") {
  Session s;
  s.negotiated();
  CHECK(s.machine().wants_input());
  CHECK(s.say(R"({"execute":"stop","id":1}{"execute":"cont","id":2} x {"execute":"quit"})") ==
        std::vector<std::string>{"run stop"});
  CHECK_FALSE(s.machine().wants_input());
  CHECK(s.finish("stop") == std::vector<std::string>{R"({"return": {}, "id": 1})", "run cont"});
  // The error keeps its place behind the command before it.
  CHECK(s.finish("cont") == std::vector<std::string>{R"({"return": {}, "id": 2})",
                                                     error("JSON parse error, invalid keyword 'x'"), "run quit"});
}

TEST_CASE("SessionMachine.lets_oob_commands_overtake_up_to_eight_waiting") {
  Session s;
  s.negotiated(R"({"enable":["oob"]})");
  CHECK(s.say_one(R"({"execute":"query-qmp-schema","id":0})") == "run query-qmp-schema");
  for (int i = 0; i < 7; ++i) CHECK(s.say(R"({"execute":"query-status"})").empty());
  CHECK(s.machine().wants_input());
  CHECK(s.say_one(R"({"exec-oob":"query-yank","id":"now"})") == "oob query-yank");
  CHECK(s.finish("query-yank") == std::vector<std::string>{R"({"return": {}, "id": "now"})"});
  CHECK(s.say(R"({"execute":"query-status"})").empty());
  CHECK_FALSE(s.machine().wants_input());
  CHECK(s.finish("query-qmp-schema") == std::vector<std::string>{R"({"return": {}, "id": 0})", "run query-status"});
  CHECK(s.machine().wants_input());
}

TEST_CASE("SessionMachine.hands_out_arguments_and_the_request_s_last_byte") {
  Session s;
  s.negotiated();
  const auto before = std::string_view(R"({"execute":"qmp_capabilities","arguments":{}})").size();
  const std::string request = R"({"execute":"getfd","arguments":{"fdname":"migrate"}})";
  CHECK(s.say_one(request) == "run getfd");
  REQUIRE(s.running().size() == 1);
  CHECK(s.running()[0].arguments == Json::object({{"fdname", "migrate"}}));
  CHECK(s.running()[0].end == before + request.size());
  CHECK(s.machine().finished(999, QmpResult<OrderedJson>(OrderedJson())).empty());
}

TEST_CASE("Events.are_written_as_qemu_writes_them") {
  using std::chrono::microseconds;
  const std::chrono::system_clock::time_point when(microseconds(1700000000123456));
  CHECK(write_json(encode_event(event::Migration{MigrationStatus::pre_switchover}, when)) ==
        "{\"timestamp\": {\"seconds\": 1700000000, \"microseconds\": 123456}, \"event\": \"MIGRATION\", "
        "\"data\": {\"status\": \"pre-switchover\"}}");
  CHECK(write_json(encode_event(event::Stop{}, when)) ==
        "{\"timestamp\": {\"seconds\": 1700000000, \"microseconds\": 123456}, \"event\": \"STOP\"}");
  CHECK(encode_event(event::Shutdown{false, ShutdownCause::host_signal}, when)["data"] ==
        OrderedJson({{"guest", false}, {"reason", "host-signal"}}));
}
