// SPDX-License-Identifier: Apache-2.0
//
// The whole control socket in one process: a server on a real unix socket, clients that are plain descriptors, a
// service that only takes notes. Stories: send, settle, compare everything that came back.
#include "daemon/control/control_server.hpp"

#include "base/limits.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/daemon/control_fake_service.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <map>
#include <regex>

using namespace migrationd;
using namespace migrationd::control;
using namespace std::chrono_literals;

namespace {

std::string socket_path() {
  static int number = 0;
  return "/tmp/control-server-test." + std::to_string(::getpid()) + "." + std::to_string(number++);
}

class Client {
 public:
  explicit Client(const std::string& path) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  }
  void send(std::string_view text, int passed = -1) {
    iovec where{const_cast<char*>(text.data()), text.size()};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &where;
    message.msg_iovlen = 1;
    if (passed >= 0) {
      message.msg_control = control.data();
      message.msg_controllen = control.size();
      auto* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(sizeof(int));
      std::memcpy(CMSG_DATA(header), &passed, sizeof passed);
    }
    REQUIRE(::sendmsg(fd_.get(), &message, 0) == static_cast<ssize_t>(text.size()));
  }
  // Everything there is now, one entry per line; timestamps taken out.
  std::vector<std::string> lines() {
    std::string text;
    std::array<char, 65536> buffer{};
    while (true) {
      const auto count = ::recv(fd_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
      at_end = count == 0;
      if (count <= 0) break;
      text.append(buffer.data(), static_cast<std::size_t>(count));
    }
    static const std::regex timestamp(R"("timestamp": \{[^}]*\}, )");
    std::vector<std::string> lines;
    for (std::size_t at = 0; at < text.size();) {
      const auto end = text.find("\r\n", at);
      REQUIRE(end != std::string::npos);
      lines.push_back(std::regex_replace(text.substr(at, end - at), timestamp, ""));
      at = end + 2;
    }
    return lines;
  }
  int fd() const { return fd_.get(); }
  void close() { fd_.reset(); }

  bool at_end = false;

 private:
  UniqueFd fd_;
};

struct Fixture {
  EventLoop loop;
  EventBus events;
  FakeService service{events};
  int quits = 0;
  std::string path = socket_path();
  ControlServer server{loop, events, service, options(), [this] { ++quits; }};

  Fixture() { REQUIRE(bool(server.listen({path, std::nullopt, std::nullopt}))); }
  static ControlOptions options() {
    ControlOptions given;
    given.version = {{10, 0, 13}, "migrationd"};
    given.name = "box";
    return given;
  }
  void settle() {
    while (loop.run_for(10ms)) {
    }
  }
  // A client that has negotiated; what was said so far is gone.
  Client ready(std::string_view enable = "") {
    Client client(path);
    client.send("{'execute':'qmp_capabilities'" + std::string(enable) + "}");
    settle();
    const auto said = client.lines();
    REQUIRE(said.size() == 2);
    REQUIRE(said.back() == "{\"return\": {}}");
    return client;
  }
  std::vector<std::string> ask(Client& client, std::string_view text, int passed = -1) {
    client.send(text, passed);
    settle();
    return client.lines();
  }
};

using Lines = std::vector<std::string>;
constexpr auto with_oob = ",'arguments':{'enable':['oob']}";
const std::string ok = "{\"return\": {}}";

std::string generic(const std::string& text) {
  return R"({"error": {"class": "GenericError", "desc": ")" + text + "\"}}";
}

}  // namespace

TEST_CASE("ControlServer.greets_and_wants_negotiation_first") {
  Fixture f;
  Client client(f.path);
  f.settle();
  CHECK(client.lines() == Lines{R"({"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 13}, "package": )"
                                R"("migrationd"}, "capabilities": ["oob"]}})"});
  CHECK(f.ask(client, "{'execute':'query-name','id':1}") ==
        Lines{R"({"id": 1, "error": {"class": "CommandNotFound", "desc": "Expecting capabilities negotiation with )"
              R"('qmp_capabilities'"}})"});
  CHECK(f.ask(client, "{'execute':'qmp_capabilities','id':2} {'execute':'query-name','id':[null]}") ==
        Lines{R"({"return": {}, "id": 2})", R"({"return": {"name": "box"}, "id": [null]})"});
}

TEST_CASE("ControlServer.event_precedes_the_reply_of_its_command_at_every_client") {
  Fixture f;
  auto first = f.ready();
  auto second = f.ready();
  Client silent(f.path);
  CHECK(f.ask(first, "{'execute':'stop'}") == Lines{R"({"event": "STOP"})", ok});
  CHECK(f.ask(first, "{'execute':'stop'}") == Lines{ok});
  CHECK(f.ask(first, "{'execute':'cont'}") == Lines{R"({"event": "RESUME"})", ok});
  CHECK(second.lines() == Lines{R"({"event": "STOP"})", R"({"event": "RESUME"})"});
  CHECK(silent.lines().size() == 1);  // the greeting: events wait for negotiation and are not replayed
}

TEST_CASE("ControlServer.commands_of_all_clients_take_turns") {
  Fixture f;
  auto first = f.ready();
  auto second = f.ready();
  std::string burst;
  for (int i = 0; i < 5; ++i) burst += "{'execute':'migrate_cancel'}";
  first.send(burst);
  second.send("{'execute':'migrate-start-postcopy'}");
  f.settle();
  CHECK(first.lines() == Lines(5, ok));
  CHECK(second.lines() == Lines{ok});
  REQUIRE(f.service.calls.size() == 6);
  CHECK(f.service.calls.back() != "postcopy");  // it did not wait for the whole burst
}

TEST_CASE("ControlServer.slow_command_holds_its_own_client_only") {
  Fixture f;
  auto first = f.ready();
  auto second = f.ready();
  CHECK(f.ask(first, "{'execute':'__org.migrationd_verify-machine','id':1}{'execute':'query-name','id':2}").empty());
  CHECK(f.ask(second, "{'execute':'query-name','id':3}") == Lines{R"({"return": {"name": "box"}, "id": 3})"});
  REQUIRE(f.service.verifying.size() == 1);
  f.service.verifying.front()(nlohmann::json{{"checked-pages", 7}});
  f.settle();
  CHECK(first.lines() ==
        Lines{R"({"return": {"checked-pages": 7}, "id": 1})", R"({"return": {"name": "box"}, "id": 2})"});
}

TEST_CASE("ControlServer.client_that_left_does_not_miss_its_slow_answer") {
  Fixture f;
  {
    auto client = f.ready();
    CHECK(f.ask(client, "{'execute':'__org.migrationd_verify-machine'}").empty());
  }
  f.settle();
  REQUIRE(f.service.verifying.size() == 1);
  f.service.verifying.front()(machine_error("page 3 is wrong"));
  f.settle();
  CHECK(f.server.clients() == 0);
}

TEST_CASE("ControlServer.out_of_band_command_overtakes_a_slow_one") {
  Fixture f;
  auto client = f.ready(with_oob);
  CHECK(f.ask(client,
              "{'execute':'__org.migrationd_verify-machine','id':1}{'execute':'query-name','id':2}"
              "{'exec-oob':'query-yank','id':3}{'exec-oob':'migrate-pause','id':4}") ==
        Lines{R"({"return": [], "id": 3})",
              R"({"id": 4, "error": {"class": "GenericError", "desc": "nothing to pause"}})"});
  f.service.verifying.front()(machine_error("page 3 is wrong"));
  f.settle();
  CHECK(client.lines() == Lines{R"({"id": 1, "error": {"class": "GenericError", "desc": "page 3 is wrong"}})",
                                R"({"return": {"name": "box"}, "id": 2})"});
}

TEST_CASE("ControlServer.descriptor_of_a_later_command_is_not_found_by_an_earlier_one") {
  for (const auto* enable : {"", with_oob}) {
    Fixture f;
    auto client = f.ready(enable);
    client.send("{'execute':'__org.migrationd_verify-machine'}{'execute':'getfd','arguments':{'fdname':'a'}}");
    client.send("{'execute':'getfd','arguments':{'fdname':'b'}}", client.fd());
    f.settle();
    CHECK(client.lines().empty());
    f.service.verifying.front()(nlohmann::json::object());
    f.settle();
    CHECK(client.lines() == Lines{ok, generic("No file descriptor supplied via SCM_RIGHTS"), ok});
    CHECK(f.ask(client, "{'execute':'migrate','arguments':{'uri':'fd:b'}}") ==
          Lines{R"({"event": "MIGRATION", "data": {"status": "setup"}})", ok});
    CHECK(bool(f.service.taken));
  }
}

TEST_CASE("ControlServer.descriptor_waits_for_the_command_that_claims_it") {
  Fixture f;
  auto client = f.ready();
  CHECK(f.ask(client, " ", client.fd()).empty());
  CHECK(f.ask(client, "{'execute':'bogus'}").size() == 1);
  CHECK(f.ask(client, "{'execute':'getfd','arguments':{'fdname':5}}") ==
        Lines{generic("Invalid parameter type for 'fdname', expected: string")});
  CHECK(f.ask(client, "{'execute':'getfd','arguments':{'fdname':'9'}}") ==
        Lines{generic("Parameter 'fdname' expects a name not starting with a digit")});
  CHECK(f.ask(client, "{'execute':'getfd','arguments':{'fdname':'a'}}") ==
        Lines{generic("No file descriptor supplied via SCM_RIGHTS")});
}

TEST_CASE("ControlServer.named_descriptor_outlives_the_connection_that_passed_it") {
  Fixture f;
  {
    auto client = f.ready();
    CHECK(f.ask(client, "{'execute':'getfd','arguments':{'fdname':'a'}}", client.fd()) == Lines{ok});
  }
  auto client = f.ready();
  CHECK(f.ask(client, "{'execute':'closefd','arguments':{'fdname':'a'}}") == Lines{ok});
  CHECK(f.ask(client, "{'execute':'closefd','arguments':{'fdname':'a'}}") ==
        Lines{generic("File descriptor named 'a' not found")});
}

TEST_CASE("ControlServer.descriptor_sets_are_listed_with_what_was_given") {
  Fixture f;
  auto client = f.ready();
  CHECK(f.ask(client, "{'execute':'add-fd','arguments':{'fdset-id':5,'opaque':'x'}}", client.fd()).size() == 1);
  CHECK(f.ask(client, "{'execute':'add-fd'}", client.fd()).size() == 1);
  const auto listed = f.ask(client, "{'execute':'query-fdsets'}");
  REQUIRE(listed.size() == 1);
  CHECK(std::regex_replace(listed.front(), std::regex(R"("fd": \d+)"), R"("fd": N)") ==
        R"({"return": [{"fdset-id": 5, "fds": [{"fd": N, "opaque": "x"}]}, {"fdset-id": 0, "fds": [{"fd": N}]}]})");
}

TEST_CASE("ControlServer.half_closed_client_gets_every_answer_and_then_the_end") {
  Fixture f;
  auto client = f.ready();
  client.send("{'execute':'query-name'}{'execute':'query-name'}");
  REQUIRE(::shutdown(client.fd(), SHUT_WR) == 0);
  f.settle();
  CHECK(client.lines().size() == 2);
  CHECK(client.at_end);
  CHECK(f.server.clients() == 0);
}

TEST_CASE("ControlServer.quit_says_so_and_answers_nothing_more") {
  Fixture f;
  auto client = f.ready();
  auto other = f.ready();
  CHECK(f.ask(client, "{'execute':'quit'}{'execute':'query-name'}") ==
        Lines{R"({"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-qmp-quit"}})", ok});
  CHECK(f.quits == 1);
  f.server.shut_down();
  CHECK(client.lines().empty());
  CHECK(client.at_end);
  CHECK(other.lines().size() == 1);
  CHECK(other.at_end);
}

TEST_CASE("ControlServer.structured_addresses_mean_what_uris_mean") {
  Fixture f;
  auto client = f.ready();
  const auto main = [](const std::string& address) {
    return "{'execute':'migrate-incoming','arguments':{'channels':[{'channel-type':'main','addr':{" + address + "}}]}}";
  };
  CHECK(f.ask(client, main("'transport':'socket','type':'inet','host':'h','port':'1'")) == Lines{ok});
  CHECK(f.ask(client, main("'transport':'socket','type':'unix','path':'/s'")) == Lines{ok});
  CHECK(f.ask(client, main("'transport':'file','filename':'/f','offset':4096")) == Lines{ok});
  CHECK(f.ask(client, main("'transport':'rdma','host':'h','port':'1'")) == Lines{ok});
  const std::vector<std::string> uris{"tcp:h:1", "unix:/s", "file:/f,offset=4096", "rdma:h:1"};
  REQUIRE(f.service.calls.size() == uris.size());
  for (std::size_t i = 0; i < uris.size(); ++i) {
    const auto address = transports::parse_uri(uris[i]);
    REQUIRE(address.has_value());
    CHECK(f.service.calls[i] == "incoming " + transports::to_string(*address));
  }
}

TEST_CASE("ControlServer.contradictory_addresses_get_the_right_refusal") {
  Fixture f;
  auto client = f.ready();
  const std::string channel = "{'channel-type':'main','addr':{'transport':'socket','type':'unix','path':'/s'}}";
  const std::string cpr = "{'channel-type':'cpr','addr':{'transport':'socket','type':'unix','path':'/s'}}";
  const auto migrate = [&](const std::string& arguments) {
    return f.ask(client, "{'execute':'migrate','arguments':{" + arguments + "}}");
  };
  const Lines neither{generic("need either 'uri' or 'channels' argument")};
  CHECK(migrate("") == neither);
  CHECK(migrate("'channels':[]") == neither);
  CHECK(migrate("'uri':'tcp:h:1','channels':[" + channel + "]") == neither);
  CHECK(migrate("'channels':[" + channel + "," + channel + "]") ==
        Lines{generic("Channel list has more than one main entry")});
  CHECK(migrate("'channels':[" + cpr + "]") == Lines{generic("Channel list has no main entry")});
  CHECK(migrate("'channels':[{'channel-type':'main','addr':{'transport':'exec','args':[]}}]").size() == 1);
  CHECK(migrate("'uri':'foo:bar'") == Lines{generic("unknown migration protocol: foo:bar")});
  CHECK(f.ask(client, "{'execute':'migrate-incoming','arguments':{'channels':[" + channel + "," + cpr + "]}}") ==
        Lines{generic("Channel list must have only one entry, for type 'main'")});
  CHECK(f.service.calls.empty());
}

TEST_CASE("ControlServer.machine_without_devices_says_so") {
  Fixture f;
  auto client = f.ready();
  for (const std::string command :
       {"query-block", "query-named-block-nodes", "query-chardev", "query-iothreads", "query-hotpluggable-cpus",
        "query-cpus-fast", "query-vcpu-dirty-limit", "query-yank"}) {
    CHECK(f.ask(client, "{'execute':'" + command + "'}") == Lines{"{\"return\": []}"});
  }
  CHECK(f.ask(client, "{'execute':'blockdev-set-active','arguments':{'active':true}}") == Lines{ok});
  CHECK(f.ask(client, "{'execute':'qom-list','arguments':{'path':'/machine/peripheral'}}") ==
        Lines{R"({"return": [{"name": "type", "type": "string"}]})"});
  CHECK(f.ask(client, "{'execute':'qom-get','arguments':{'path':'peripheral/','property':'type'}}") ==
        Lines{R"({"return": "container"})"});
  CHECK(f.ask(client, "{'execute':'qom-get','arguments':{'path':'/machine/unattached/device[0]','property':'x'}}") ==
        Lines{R"({"error": {"class": "DeviceNotFound", "desc": "Device '/machine/unattached/device[0]' not found"}})"});
  CHECK(f.ask(client, "{'execute':'qom-get','arguments':{'path':'/objects','property':'x'}}") ==
        Lines{generic("Property 'container.x' not found")});
  CHECK(f.ask(client, "{'execute':'qom-list','arguments':{'path':''}}") == Lines{generic("Path '' is ambiguous")});
}

TEST_CASE("ControlServer.yank_breaks_a_running_migration_only") {
  Fixture f;
  auto client = f.ready();
  const std::string yank = "{'execute':'yank','arguments':{'instances':[{'type':'migration'}]}}";
  const Lines missing{R"({"error": {"class": "DeviceNotFound", "desc": "Instance not found"}})"};
  CHECK(f.ask(client, yank) == missing);
  CHECK(f.ask(client, "{'execute':'yank','arguments':{'instances':[]}}") == Lines{ok});
  f.service.busy = true;
  CHECK(f.ask(client, "{'execute':'query-yank'}") == Lines{R"({"return": [{"type": "migration"}]})"});
  CHECK(f.ask(client, yank) == Lines{ok});
  CHECK(f.ask(client,
              "{'execute':'yank','arguments':{'instances':[{'type':'migration'},{'type':'chardev','id':'c'}]}}") ==
        missing);
  CHECK(f.service.calls == std::vector<std::string>{"yank"});
}

TEST_CASE("ControlServer.dirty_rate_is_measured_once_at_a_time") {
  Fixture f;
  auto client = f.ready();
  const auto calc = [&](const std::string& arguments) {
    return f.ask(client, "{'execute':'calc-dirty-rate','arguments':{" + arguments + "}}");
  };
  CHECK(calc("'calc-time':0") == Lines{generic("Calculation time is out of range [50ms, 60000ms].")});
  CHECK(calc("'calc-time':49,'calc-time-unit':'millisecond'").size() == 1);
  CHECK(calc("'calc-time':9223372036854775807") == Lines{generic("Calculation time is out of range [50ms, 60000ms].")});
  CHECK(calc("'calc-time':1,'sample-pages':1") == Lines{generic("sample-pages is out of range[128, 16384].")});
  CHECK(calc("'calc-time':1,'mode':'dirty-bitmap','sample-pages':200") ==
        Lines{generic("sample-pages is used only in page-sampling mode")});
  CHECK(calc("'calc-time':1,'mode':'dirty-ring'") ==
        Lines{generic("mode dirty-ring is not enabled, use other method instead.")});
  CHECK(calc("'calc-time':1") == Lines{ok});
  CHECK(calc("'calc-time':1") == Lines{generic("the dirty rate is already being measured.")});
  REQUIRE(f.service.measuring.size() == 1);
  f.service.measuring.front()(std::uint64_t{2560});  // pages a second
  const auto result = f.ask(client, "{'execute':'query-dirty-rate'}");
  REQUIRE(result.size() == 1);
  CHECK(result.front().find(R"("dirty-rate": 10)") != std::string::npos);
  CHECK(result.front().find(R"("status": "measured")") != std::string::npos);
  CHECK(result.front().find(R"("calc-time": 1)") != std::string::npos);
}

TEST_CASE("ControlServer.client_that_does_not_read_is_dropped_and_others_are_served") {
  Fixture f;
  auto lazy = f.ready();
  auto other = f.ready();
  std::string burst;
  for (int i = 0; i < 100; ++i) burst += "{'execute':'query-qmp-schema'}";
  for (int i = 0; i < 20 && f.server.clients() == 2; ++i) {
    lazy.send(burst);
    f.settle();
  }
  CHECK(f.server.clients() == 1);
  CHECK(f.ask(other, "{'execute':'query-name'}") == Lines{R"({"return": {"name": "box"}})"});
}

TEST_CASE("ControlServer.connections_beyond_the_limit_wait_their_turn") {
  Fixture f;
  std::vector<Client> clients;
  for (std::size_t i = 0; i < limits::qmp_clients + 3; ++i) {
    clients.emplace_back(f.path);
    f.loop.run_for(1ms);
    f.loop.run_for(1ms);
  }
  f.settle();
  CHECK(f.server.clients() == limits::qmp_clients);
  CHECK(clients.back().lines().empty());
  for (int i = 0; i < 3; ++i) clients[static_cast<std::size_t>(i)].close();
  f.settle();
  CHECK(f.server.clients() == limits::qmp_clients);
  CHECK(clients.back().lines().size() == 1);
}
