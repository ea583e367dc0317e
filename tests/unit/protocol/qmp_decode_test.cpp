// SPDX-License-Identifier: Apache-2.0
// Arguments: every text of the checks, on real commands; and results.
#include "protocol/qmp/commands.hpp"
#include "protocol/qmp/dispatch.hpp"
#include "protocol/qmp/json_writer.hpp"
#include "protocol/qmp/parameter_codec.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::qmp;

namespace {

// What decode says of the arguments of the command, through the table as dispatch does it.
std::string verdict(std::string_view command, std::string_view arguments) {
  const auto* row = find_command(command);
  REQUIRE(row != nullptr);
  const auto json = Json::parse(arguments);
  return visit_command(*row, [&]<class C>() -> std::string {
    const auto decoded = decode<typename C::Args>(json);
    return decoded.has_value() ? "ok" : decoded.error().text();
  });
}

struct Case {
  std::string_view command;
  std::string_view arguments;
  std::string_view verdict;
};

constexpr std::string_view inet = R"("transport":"socket","type":"inet","host":"h")";

const std::vector<Case> cases = {
    {"migrate", "{}", "ok"},
    {"migrate", R"({"uri":"tcp:a:1","detach":true,"resume":false})", "ok"},
    {"migrate", R"({"uri":null})", "Invalid parameter type for 'uri', expected: string"},
    {"migrate", R"({"uri":5})", "Invalid parameter type for 'uri', expected: string"},
    {"migrate", R"({"resume":"x"})", "Invalid parameter type for 'resume', expected: boolean"},
    {"migrate", R"({"blk":true})", "Parameter 'blk' is unexpected"},
    {"migrate", R"({"channels":5})", "Invalid parameter type for 'channels', expected: array"},
    {"migrate", R"({"channels":[5]})", "Invalid parameter type for 'channels[0]', expected: object"},
    {"migrate", R"({"channels":[{}]})", "Parameter 'channels[0].channel-type' is missing"},
    {"migrate", R"({"channels":[{"channel-type":"bogus"}]})", "Parameter 'channel-type' does not accept value 'bogus'"},
    {"migrate", R"({"channels":[{"channel-type":"main","addr":{"transport":"bogus"}}]})",
     "Parameter 'transport' does not accept value 'bogus'"},
    {"migrate", R"({"channels":[{"channel-type":"main","addr":{"transport":"file","filename":"f"}}]})",
     "Parameter 'channels[0].addr.offset' is missing"},
    {"migrate", R"({"channels":[{"channel-type":"main","addr":{"transport":"file","filename":"f","offset":4096}}]})",
     "ok"},
    {"migrate", R"({"channels":[{"channel-type":"main","addr":{"transport":"exec","args":["/bin/true",1]}}]})",
     "Invalid parameter type for 'channels[0].addr.args[1]', expected: string"},
    {"migrate-recover", "{}", "Parameter 'uri' is missing"},
    {"migrate-set-capabilities", "{}", "Parameter 'capabilities' is missing"},
    {"migrate-set-capabilities", R"({"capabilities":[{"capability":"events"}]})",
     "Parameter 'capabilities[0].state' is missing"},
    {"migrate-set-capabilities", R"({"capabilities":[{"capability":"events","state":true,"z":1}]})",
     "Parameter 'capabilities[0].z' is unexpected"},
    {"migrate-set-capabilities", R"({"capabilities":[{"capability":"bogus","state":true}]})",
     "Parameter 'capability' does not accept value 'bogus'"},
    {"migrate-set-capabilities", R"({"capabilities":[{"capability":"__org.migrationd_skip-holes","state":true}]})",
     "ok"},
    {"migrate_set_capability", R"({"capability":"events","state":true})", "ok"},
    {"migrate-set-parameters", "{}", "ok"},
    {"migrate-set-parameters", R"({"max-bandwidth":-1})", "ok"},
    {"migrate-set-parameters", R"({"max-bandwidth":"1"})", "Parameter 'max-bandwidth' expects uint64"},
    {"migrate-set-parameters", R"({"max-bandwidth":1.0})", "Parameter 'max-bandwidth' expects uint64"},
    {"migrate-set-parameters", R"({"max-bandwidth":null})", "Parameter 'max-bandwidth' expects uint64"},
    {"migrate-set-parameters", R"({"max-bandwidth":18446744073709551616})", "Parameter 'max-bandwidth' expects uint64"},
    {"migrate-set-parameters", R"({"max-bandwidth":9223372036853727232})", "ok"},
    {"migrate-set-parameters", R"({"multifd-channels":256})", "Parameter 'multifd-channels' expects uint8_t"},
    {"migrate-set-parameters", R"({"multifd-channels":-1})", "Parameter 'multifd-channels' expects uint8_t"},
    {"migrate-set-parameters", R"({"multifd-channels":true})", "Parameter 'multifd-channels' expects uint64"},
    {"migrate-set-parameters", R"({"x-checkpoint-delay":4294967296})",
     "Parameter 'x-checkpoint-delay' expects uint32_t"},
    {"migrate-set-parameters", R"({"tls-creds":null,"tls-hostname":"h"})", "ok"},
    {"migrate-set-parameters", R"({"tls-creds":1})", "Invalid parameter type for 'tls-creds', expected: StrOrNull"},
    {"migrate-set-parameters", R"({"cpu-throttle-tailslow":1})",
     "Invalid parameter type for 'cpu-throttle-tailslow', expected: boolean"},
    {"migrate-set-parameters", R"({"mode":"x"})", "Parameter 'mode' does not accept value 'x'"},
    {"migrate-set-parameters", R"({"nosuch":1})", "Parameter 'nosuch' is unexpected"},
    {"migrate-set-parameters", R"({"block-bitmap-mapping":[{"node-name":"n","alias":"a"}]})",
     "Parameter 'block-bitmap-mapping[0].bitmaps' is missing"},
    {"add-fd", R"({"fdset-id":-5})", "ok"},
    {"add-fd", R"({"fdset-id":"x"})", "Invalid parameter type for 'fdset-id', expected: integer"},
    {"add-fd", R"({"fdset-id":9223372036854775808})", "Invalid parameter type for 'fdset-id', expected: integer"},
    {"add-fd", R"({"fdset-id":1e3})", "Invalid parameter type for 'fdset-id', expected: integer"},
    {"yank", R"({"instances":[{"type":"migration"},{"type":"chardev","id":"c"}]})", "ok"},
    {"yank", R"({"instances":[{"type":"chardev"}]})", "Parameter 'instances[0].id' is missing"},
    {"yank", R"({"instances":[{"type":"migration","id":"c"}]})", "Parameter 'instances[0].id' is unexpected"},
    {"object-add", "{}", "Parameter 'qom-type' is missing"},
    {"object-add", R"({"qom-type":"secret"})", "Parameter 'id' is missing"},
    {"object-add", R"({"qom-type":"bogus","id":"a"})", "Parameter 'qom-type' does not accept value 'bogus'"},
    {"object-add", R"({"qom-type":"tls-creds-anon","id":"a","foo":1})", "Parameter 'foo' is unexpected"},
    {"object-add", R"({"qom-type":"tls-creds-anon","id":"a","endpoint":"bogus"})",
     "Parameter 'endpoint' does not accept value 'bogus'"},
    {"object-add", R"({"qom-type":"tls-cipher-suites","id":"a","priority":"NORMAL"})", "ok"},
    {"object-add", R"({"qom-type":"iothread","id":"a","poll-max-ns":1})", "ok"},
    {"stop", R"({"x":1})", "Parameter 'x' is unexpected"},
    {"stop", R"({"":1})", "Parameter '' is unexpected"},
};

}  // namespace

TEST_CASE("Decode.refuses_wrong_arguments_in_qemus_words") {
  for (const auto& row : cases) {
    INFO(row.command << " " << row.arguments);
    CHECK(verdict(row.command, row.arguments) == row.verdict);
  }
}

TEST_CASE("Decode.names_a_small_integer_bare_when_out_of_range_and_by_path_when_no_integer") {
  const auto with_to = [](std::string_view to) {
    return "{\"channels\":[{\"channel-type\":\"main\",\"addr\":{" + std::string(inet) +
           ",\"port\":\"1\",\"to\":" + std::string(to) + "}}]}";
  };
  CHECK(verdict("migrate", with_to("65535")) == "ok");
  CHECK(verdict("migrate", with_to("65536")) == "Parameter 'to' expects uint16_t");
  CHECK(verdict("migrate", with_to("-1")) == "Parameter 'to' expects uint16_t");
  CHECK(verdict("migrate", with_to("\"1\"")) == "Parameter 'channels[0].addr.to' expects uint64");
  CHECK(verdict("migrate", "{\"channels\":[{\"channel-type\":\"main\",\"addr\":{" + std::string(inet) + "}}]}") ==
        "Parameter 'channels[0].addr.port' is missing");
}

TEST_CASE("Decode.fills_nested_unions") {
  const auto json = Json::parse(
      R"({"channels":[{"channel-type":"main","addr":{"transport":"socket","type":"unix","path":"/p","tight":false}}]})");
  const auto args = decode<MigrateArgs>(json);
  REQUIRE(args.has_value());
  const auto& address = args->channels->at(0).addr;
  CHECK(address.transport == MigrationAddressType::socket);
  const auto& socket = std::get<SocketAddress>(address.u);
  const auto& unix_path = std::get<UnixSocketAddress>(socket.u);
  CHECK(unix_path.path == "/p");
  CHECK(unix_path.tight == false);
  CHECK_FALSE(unix_path.abstract.has_value());
}

TEST_CASE("Decode.keeps_the_branch_of_object_add") {
  const auto args =
      decode<ObjectAddArgs>(Json::parse(R"({"qom-type":"tls-creds-x509","id":"t","dir":"/d","verify-peer":true})"));
  REQUIRE(args.has_value());
  CHECK(std::get<TlsCredsX509>(args->u).dir == "/d");
  CHECK(refused_object(*args).text() == "invalid object type: tls-creds-x509");
  CHECK(bool(check_object_id("a1.-_")));
  for (const auto* bad : {"", "1a", "-", "a b", "a/"}) {
    INFO(bad);
    const auto checked = check_object_id(bad);
    REQUIRE(checked.has_error());
    CHECK(checked.error().text() == "Parameter 'id' expects an identifier");
  }
}

TEST_CASE("Encode.leaves_out_what_is_unset_and_flattens_unions") {
  MigrationInfo info;
  CHECK(write_json(encode(info)) == "{}");
  info.status = MigrationStatus::setup;
  SocketAddress address;
  address.u = InetSocketAddress{"127.0.0.1", "36375", {}, {}, true, {}, {}, {}};
  info.socket_address = {address};
  CHECK(write_json(encode(info)) ==
        "{\"status\": \"setup\", \"socket-address\": [{\"type\": \"inet\", \"host\": \"127.0.0.1\", \"port\": "
        "\"36375\", \"ipv4\": true}]}");
  YankInstance instance;
  CHECK(write_json(encode(instance)) == "{\"type\": \"migration\"}");
  CHECK(write_json(encode(NoBlockDevices{})) == "[]");
  info = {};
  info.ram = MigrationRamStats{};
  CHECK(encode(info)["ram"].size() == 17);
}

namespace {

struct EveryHandler {
  template <class C, class... Context>
  requires(!std::is_same_v<C, cmd::QmpCapabilities>) QmpResult<typename C::Result> handle(C, const typename C::Args&,
                                                                                          Context&...) {
    if constexpr (std::is_same_v<C, cmd::Stop>) return QmpError("Instance not found", ErrorClass::device_not_found);
    // A string could be an error text as well, so the value is named.
    return {boost::system::in_place_value, typename C::Result{}};
  }
};

}  // namespace

TEST_CASE("Dispatch.reaches_the_handler_of_every_command") {
  EveryHandler handlers;
  for (const auto& row : command_table()) {
    if (row.name == "qmp_capabilities" || row.name == "stop") continue;
    INFO(row.name);
    const auto reply = dispatch(handlers, row, Json::object());
    // Those with mandatory arguments say what is missing; the others answer with a value of their type.
    if (reply.has_error()) CHECK(reply.error().text().ends_with("' is missing"));
  }
  const auto refused = dispatch(handlers, *find_command("stop"), Json::object());
  REQUIRE(refused.has_error());
  CHECK(refused.error().error_class() == ErrorClass::device_not_found);
  CHECK(*dispatch(handlers, *find_command("query-block"), Json::object()) == OrderedJson::array());
}
