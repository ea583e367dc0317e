// SPDX-License-Identifier: Apache-2.0
// The human monitor: what lines become, and what is printed. Texts as a running QEMU gave them.
#include "protocol/qmp/hmp.hpp"
#include "protocol/qmp/json_writer.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::qmp;

namespace {

// The text of an immediate answer, or "NAME ARGUMENTS" of the command it becomes, or "info N".
std::string plan(std::string_view line) {
  const auto made = parse_hmp(line);
  if (const auto* text = std::get_if<HmpText>(&made)) return text->text;
  if (const auto* info = std::get_if<HmpInfo>(&made)) return "info " + std::to_string(static_cast<int>(*info));
  const auto& command = std::get<HmpCommand>(made);
  return std::string(command.command->name) + " " + write_json(command.arguments);
}

std::string tried(std::string_view problem, std::string_view help) {
  return std::string(problem) + "\r\nTry \"help " + std::string(help) + "\" for more information\r\n";
}

}  // namespace

TEST_CASE("Hmp.turns_lines_into_qmp_commands") {
  const std::vector<std::pair<std::string_view, std::string_view>> table = {
      {"stop", "stop {}"},
      {"s", "stop {}"},
      {"\tc ", "cont {}"},
      {"q", "quit {}"},
      {"migrate -d tcp:a:1", R"(migrate {"resume": false, "uri": "tcp:a:1"})"},
      {"migrate -d -r \"exec:cat > x\"", R"(migrate {"resume": true, "uri": "exec:cat > x"})"},
      {"migrate_cancel", "migrate_cancel {}"},
      {"migrate_continue pre-switchover", R"(migrate-continue {"state": "pre-switchover"})"},
      {"migrate_incoming tcp::0", R"(migrate-incoming {"exit-on-error": true, "uri": "tcp::0"})"},
      {"migrate_recover unix:/x", R"(migrate-recover {"uri": "unix:/x"})"},
      {"migrate_pause", "migrate-pause {}"},
      {"migrate_start_postcopy", "migrate-start-postcopy {}"},
      {"migrate_set_capability\tevents  on",
       R"(migrate-set-capabilities {"capabilities": [{"capability": "events", "state": true}]})"},
      {"migrate_set_parameter \"max-bandwidth\" 5",
       R"(migrate_set_parameter {"parameter": "max-bandwidth", "value": "5"})"},
      {"migrate_set_parameter tls-creds \"\"", R"(migrate_set_parameter {"parameter": "tls-creds", "value": ""})"},
      {"getfd x", R"(getfd {"fdname": "x"})"},
      {"closefd x", R"(closefd {"fdname": "x"})"},
      {"announce_self", R"(announce-self {"initial": 50, "max": 550, "rounds": 5, "step": 100})"},
      {"announce_self a,b i",
       R"(announce-self {"id": "i", "initial": 50, "interfaces": ["a", "b"], "max": 550, "rounds": 5, "step": 100})"},
      {"object_add tls-creds-anon,id=a,dir=/x,,y,verify-peer=off",
       R"(object-add {"dir": "/x,y", "id": "a", "qom-type": "tls-creds-anon", "verify-peer": false})"},
      {"object_add authz-list,id=l,policy=deny,rules.0.match=fred,rules.0.policy=allow",
       R"(object-add {"id": "l", "policy": "deny", "qom-type": "authz-list", "rules": [{"match": "fred", "policy": "allow"}]})"},
      {"object_del a", R"(object-del {"id": "a"})"},
      {"info migrate", "info 0"},
      {"info  migrate_capabilities", "info 1"},
  };
  for (const auto& [line, expected] : table) {
    INFO(line);
    CHECK(plan(line) == expected);
  }
}

TEST_CASE("Hmp.refuses_lines_in_the_monitors_words") {
  CHECK(plan("").empty());
  CHECK(plan(" \n ").empty());
  CHECK(plan("bogus") == "unknown command: 'bogus'\r\n");
  CHECK(plan("STOP") == "unknown command: 'STOP'\r\n");
  CHECK(plan("info bogus") == "unknown command: 'info bogus'\r\n");
  CHECK(plan("help bogus") == "unknown command: 'bogus'\r\n");
  CHECK(plan("migrate") == tried("migrate: string expected", "migrate"));
  CHECK(plan("migrate -d") == tried("migrate: string expected", "migrate"));
  CHECK(plan("migrate \"tcp:1") == tried("migrate: string expected", "migrate"));
  CHECK(plan("migrate -x tcp:1:2") == tried("migrate: unsupported option -x", "migrate"));
  CHECK(plan("migrate -dr exec:true") == tried("migrate: extraneous characters at the end of line", "migrate"));
  CHECK(plan("quit x") == tried("quit|q: extraneous characters at the end of line", "quit"));
  CHECK(plan("stop ; cont") == tried("stop|s: extraneous characters at the end of line", "stop"));
  CHECK(plan("info migrate x") == tried("migrate: extraneous characters at the end of line", "info migrate"));
  CHECK(plan("announce_self x y z") ==
        tried("announce_self: extraneous characters at the end of line", "announce_self"));
  CHECK(plan("migrate_set_capability") == tried("migrate_set_capability: string expected", "migrate_set_capability"));
  CHECK(plan("migrate_set_capability events") == tried("Expected 'on' or 'off'", "migrate_set_capability"));
  CHECK(plan("migrate_set_capability events yes") == tried("Expected 'on' or 'off'", "migrate_set_capability"));
  CHECK(plan("migrate_set_capability bogus on") == "Error: invalid parameter value: bogus\r\n");
  CHECK(plan("migrate_set_parameter bogus 1") == "Error: invalid parameter value: bogus\r\n");
  CHECK(plan("migrate_set_parameter max-bandwidth abc") == "Error: Invalid size abc\r\n");
  CHECK(plan("migrate_set_parameter downtime-limit x") ==
        "Error: Parameter 'downtime-limit' expects a non-negative number below 2^64\r\nOptional suffix k, M, G, T, P "
        "or E means kilo-, mega-, giga-, tera-, peta-\r\nand exabytes, respectively.\r\n");
  CHECK(plan("migrate_continue bogus") == "Error: invalid parameter value: bogus\r\n");
  CHECK(plan("object_add tls-creds-anon,id=a,verify-peer=maybe") ==
        "Error: Parameter 'verify-peer' expects 'on' or 'off'\r\n");
  CHECK(plan("object_add authz-list,id=a,rules.900.match=x").starts_with("Error: "));
}

TEST_CASE("Hmp.explains_itself") {
  CHECK(plan("help migrate_cancel") == "migrate_cancel  -- cancel the current VM migration\r\n");
  CHECK(plan("? stop") == "stop|s  -- stop emulation\r\n");
  CHECK(plan("help info migrate") == "info migrate  -- show migration status\r\n");
  CHECK(plan("help migrate") ==
        "migrate [-d] [-r] uri -- migrate to URI (using -d to not wait for completion)\r\n"
        "\t\t\t -r to resume a paused postcopy migration\r\n");
  CHECK(plan("help migrate_incoming") ==
        "migrate_incoming uri -- Continue an incoming migration from an -incoming defer\r\n");
  CHECK(plan("help help") == "help|? [cmd] -- show the help\r\n");
  CHECK(plan("help ?") == plan("help help"));
  CHECK(plan("help info status x") == "info status  -- show the current VM status (running|paused)\r\n");
  CHECK(plan("help").find("help|? [cmd] -- show the help\r\ninfo [subcommand] -- show various information about the "
                          "system state\r\nmigrate [-d]") != std::string::npos);
  CHECK(plan("help").find("migrate_set_parameter parameter value -- Set the parameter for migration\r\n") !=
        std::string::npos);
  CHECK(plan("info").starts_with("info migrate  -- "));
}

TEST_CASE("Hmp.prints_outcomes") {
  const auto made = parse_hmp("migrate tcp:a:1");
  const auto& command = std::get<HmpCommand>(made);
  const std::string note = "terminal does not allow synchronous migration, continuing detached\r\n";
  CHECK(hmp_outcome(command, nullptr) == note);
  const QmpError error("no");
  CHECK(hmp_outcome(command, &error) == note + "Error: no\r\n");
  const auto detached = parse_hmp("migrate -d tcp:a:1");
  CHECK(hmp_outcome(std::get<HmpCommand>(detached), nullptr).empty());
  const auto cancel = parse_hmp("migrate_cancel");
  CHECK(hmp_outcome(std::get<HmpCommand>(cancel), &error).empty());
}

TEST_CASE("Hmp.prints_a_completed_migration_as_qemu_does") {
  const std::string globals =
      "globals:\r\nstore-global-state: on\r\nonly-migratable: off\r\nsend-configuration: on\r\n"
      "send-section-footer: on\r\nsend-switchover-start: on\r\nclear-bitmap-shift: 18\r\n";
  MigrationInfo info;
  CHECK(hmp_info_migrate(info) == globals);
  info.status = MigrationStatus::completed;
  info.total_time = 1448;
  info.downtime = 1;
  info.setup_time = 13;
  MigrationRamStats ram;
  ram.transferred = 35154146;
  ram.total = 67641344;
  ram.duplicate = 8231;
  ram.normal = 8529;
  ram.normal_bytes = 34934784;
  ram.mbps = 195.9813017421603;
  ram.dirty_sync_count = 3;
  ram.pages_per_second = 6911;
  ram.precopy_bytes = 34067707;
  ram.downtime_bytes = 1009591;
  info.ram = ram;
  CHECK(hmp_info_migrate(info) ==
        globals +
            "Migration status: completed\r\ntotal time: 1448 ms\r\ndowntime: 1 ms\r\nsetup: 13 ms\r\n"
            "transferred ram: 34330 kbytes\r\nthroughput: 195.98 mbps\r\nremaining ram: 0 kbytes\r\n"
            "total ram: 66056 kbytes\r\nduplicate: 8231 pages\r\nnormal: 8529 pages\r\nnormal bytes: 34116 kbytes\r\n"
            "dirty sync count: 3\r\npage size: 4 kbytes\r\nmultifd bytes: 0 kbytes\r\npages-per-second: 6911\r\n"
            "precopy ram: 33269 kbytes\r\ndowntime ram: 985 kbytes\r\n");
  MigrationInfo failed;
  failed.status = MigrationStatus::failed;
  failed.error_desc = "Failed to connect to '127.0.0.1:1': Connection refused";
  CHECK(
      hmp_info_migrate(failed) ==
      globals +
          "Migration status: failed (Failed to connect to '127.0.0.1:1': Connection refused)\r\ntotal time: 0 ms\r\n");
  MigrationInfo listening;
  listening.status = MigrationStatus::setup;
  SocketAddress address;
  address.u = InetSocketAddress{"127.0.0.1", "36375", {}, {}, {}, {}, {}, {}};
  listening.socket_address = {address};
  CHECK(hmp_info_migrate(listening) == globals +
                                           "Migration status: setup\r\ntotal time: 0 ms\r\nsocket address: [\r\n"
                                           "\ttcp:127.0.0.1:36375\r\n]\r\n");
}

TEST_CASE("Hmp.prints_settings_and_state") {
  Capabilities capabilities;
  capabilities.set(Capability::events);
  const auto text = hmp_info_capabilities(capabilities);
  CHECK(
      text.starts_with("xbzrle: off\r\nrdma-pin-all: off\r\nauto-converge: off\r\nzero-blocks: off\r\nevents: on\r\n"));
  CHECK(text.ends_with(
      "mapped-ram: off\r\n__org.migrationd_skip-holes: off\r\n__org.migrationd_instant-resume: off\r\n"));
  const auto parameters = hmp_info_parameters({});
  CHECK(parameters.starts_with("announce-initial: 50 ms\r\nannounce-max: 550 ms\r\nannounce-rounds: 5\r\n"));
  CHECK(parameters.find("tls-creds: ''\r\ntls-hostname: ''\r\nmax-bandwidth: 134217728 bytes/second\r\n") !=
        std::string::npos);
  CHECK(parameters.ends_with("vcpu-dirty-limit: 1 MB/s\r\nmode: normal\r\ndirect-io: off\r\n"));
  CHECK(hmp_info_status({true, RunState::running}) == "VM status: running\r\n");
  CHECK(hmp_info_status({false, RunState::paused}) == "VM status: paused\r\n");
  CHECK(hmp_info_status({false, RunState::postmigrate}) == "VM status: paused (postmigrate)\r\n");
  CHECK(hmp_info_version({{10, 0, 13}, "Debian"}) == "10.0.13Debian\r\n");
  CHECK(hmp_info_name({}).empty());
  CHECK(hmp_info_name({"nm"}) == "nm\r\n");
  CHECK(hmp_info_uuid({}) == "00000000-0000-0000-0000-000000000000\r\n");
}
