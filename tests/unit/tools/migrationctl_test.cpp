// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/catch.hpp"
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/doctor.hpp"
#include "tools/migrationctl/progress.hpp"
#include "tools/migrationctl/qmp_client.hpp"
#include "tools/migrationctl/text.hpp"

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <thread>

using namespace migrationd;
using namespace migrationd::ctl;

namespace {

// From a real QEMU (qmp.md 11).
const char* const active = R"({"expected-downtime": 300, "status": "active", "setup-time": 13, "total-time": 1447,
  "ram": {"total": 67641344, "postcopy-requests": 0, "dirty-sync-count": 2, "multifd-bytes": 0,
  "pages-per-second": 6911, "downtime-bytes": 0, "page-size": 4096, "remaining": 991232, "postcopy-bytes": 0,
  "mbps": 226.92847058823534, "transferred": 34068036, "dirty-sync-missed-zero-copy": 0, "precopy-bytes": 34067707,
  "duplicate": 8231, "dirty-pages-rate": 167, "normal-bytes": 33927168, "normal": 8283}})";

Sample sample_of(std::string_view text) { return Sample::from_query(Json::parse(text)); }

// A host where everything works.
Facts good_facts() {
  Facts facts;
  facts.kernel = "6.12.0";
  facts.user = "someone";
  facts.uffd_device_exists = facts.uffd_device_opens = facts.uffd_syscall_works = true;
  facts.uffd_features = ~std::uint64_t{0};
  facts.pagemap_scan = facts.memfd = facts.io_uring = facts.vsock = facts.vsock_loopback = true;
  facts.huge_pages_total = facts.huge_pages_free = 4;
  facts.memlock_bytes = ~std::uint64_t{0};
  facts.open_files = 65536;
  facts.memory_total = facts.memory_available = std::uint64_t{8} << 30;
  return facts;
}

Finding finding(const Facts& facts, std::string_view name) {
  for (const Finding& one : judge(facts)) {
    if (one.name == name) return one;
  }
  FAIL("no finding named " << name);
  return {};
}

// A server for one client that answers every request with the next line of a script.
class ScriptedServer {
 public:
  explicit ScriptedServer(std::vector<std::string> lines) {
    listening_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    path_ = "/tmp/migrationctl-test-" + std::to_string(::getpid());
    ::unlink(path_.c_str());
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, path_.data(), path_.size());
    REQUIRE(::bind(listening_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0);
    REQUIRE(::listen(listening_.get(), 1) == 0);
    thread_ = std::thread([this, lines = std::move(lines)] {
      const UniqueFd client(::accept(listening_.get(), nullptr, nullptr));
      for (const std::string& line : lines) {
        [[maybe_unused]] const auto sent = ::send(client.get(), line.data(), line.size(), MSG_NOSIGNAL);
        char request[4096];
        const ssize_t got = ::recv(client.get(), request, sizeof request, 0);
        if (got > 0) requests_.emplace_back(request, static_cast<std::size_t>(got));
      }
    });
  }
  ScriptedServer(const ScriptedServer&) = delete;
  ScriptedServer& operator=(const ScriptedServer&) = delete;
  ~ScriptedServer() {
    if (thread_.joinable()) thread_.join();
    ::unlink(path_.c_str());
  }
  const std::string& path() const { return path_; }
  // After the client has gone.
  const std::vector<std::string>& requests() {
    thread_.join();
    return requests_;
  }

 private:
  UniqueFd listening_;
  std::string path_;
  std::thread thread_;
  std::vector<std::string> requests_;
};

}  // namespace

TEST_CASE("Text.sizes_show_three_digits_that_count") {
  CHECK(size_text(0) == "0 B");
  CHECK(size_text(1023) == "1023 B");
  CHECK(size_text(1536) == "1.50 KiB");
  CHECK(size_text(64 << 20) == "64.0 MiB");
  CHECK(size_text(1023 << 10) == "1.00 MiB");
  CHECK(size_text(~std::uint64_t{0}) == "16.0 EiB");
}

TEST_CASE("Text.durations_show_what_matters") {
  CHECK(duration_text(999) == "999 ms");
  CHECK(duration_text(12440) == "12.4 s");
  CHECK(duration_text(200'000) == "3 min 20 s");
  CHECK(duration_text(7'500'000) == "2 h 5 min");
}

TEST_CASE("Text.numbers_take_suffixes_and_refuse_rubbish") {
  CHECK(*parse_number("0") == 0);
  CHECK(*parse_number("64M") == 64 << 20);
  CHECK(*parse_number("1.5G") == 3u << 29);
  CHECK(*parse_number("2GiB") == 2u << 30);
  CHECK(*parse_number("0x1000") == 4096);
  CHECK(*parse_number("18446744073709551615") == ~std::uint64_t{0});
  for (const char* bad : {"", "x", "-1", "1.5", "10Q", "0x", "0xg", "99999999E", "1 M", "18446744073709551616"})
    CHECK_FALSE(parse_number(bad).has_value());
}

TEST_CASE("Text.values_take_the_kind_of_the_present_value") {
  const Json current = {{"direct-io", false}, {"max-bandwidth", 1}, {"tls-creds", ""}};
  CHECK(*parse_value("on", &current["direct-io"]) == Json(true));
  CHECK(*parse_value("1G", &current["max-bandwidth"]) == Json(std::uint64_t{1} << 30));
  CHECK(*parse_value("5", &current["tls-creds"]) == Json("5"));
  CHECK(*parse_value("[1]", nullptr) == Json::array({1}));
  CHECK(*parse_value("word", nullptr) == Json("word"));
  CHECK_FALSE(parse_value("maybe", &current["direct-io"]).has_value());
  CHECK_FALSE(parse_value("much", &current["max-bandwidth"]).has_value());
  CHECK(split_assignment("a=b=c")->second == "b=c");
  CHECK_FALSE(split_assignment("a").has_value());
  CHECK_FALSE(split_assignment("=a").has_value());
}

TEST_CASE("Progress.reads_an_active_migration") {
  const Sample sample = sample_of(active);
  CHECK(sample.percent() == 98);
  CHECK(sample.rate == 28366058);
  CHECK(sample.dirty_rate == 167 * 4096);
  CHECK(sample.passes == 2);
  CHECK(sample.measured);
  CHECK_FALSE(sample.incoming);
  CHECK(sample.outlook().left == 35);
  CHECK_FALSE(sample.ended());
  CHECK(progress_bar(sample, sample.outlook(), 200) ==
        " 98% [###################.]  27.1 MiB/s  left 968 KiB  dirty 668 KiB/s  pass 2  35 ms left");
  CHECK(progress_bar(sample, sample.outlook(), 79) ==
        " 98% [########.]  27.1 MiB/s  left 968 KiB  dirty 668 KiB/s  pass 2  35 ms left");
  CHECK(progress_bar(sample, sample.outlook(), 20).size() == 20);
  CHECK(progress_line(sample, sample.outlook()) ==
        "active: 98%, 32.5 MiB sent at 27.1 MiB/s, 968 KiB remaining, dirty 668 KiB/s, pass 2, 35 ms left");
}

TEST_CASE("Progress.says_when_the_end_is_not_in_sight") {
  Sample sample = sample_of(active);
  sample.dirty_rate = sample.rate;
  CHECK(sample.outlook().never);
  CHECK_FALSE(sample.outlook().left.has_value());
  CHECK(progress_line(sample, sample.outlook()).find("dirtied faster than sent") != std::string::npos);
  sample.remaining = sample.total + 5;
  CHECK(sample.percent() == 0);
}

TEST_CASE("Progress.shows_of_a_destination_what_it_reports") {
  const Sample listening = sample_of(R"({"status": "setup", "socket-address": [{"type": "unix", "path": "/s"}]})");
  CHECK(listening.incoming);
  CHECK(progress_line(listening, listening.outlook()) == "setup: waiting for the source");
  const Sample active = sample_of(R"({"status": "active"})");
  CHECK(active.incoming);
  CHECK(progress_line(active, active.outlook()) == "active: receiving");
  CHECK(progress_bar(active, active.outlook(), 6) == "active");
  CHECK(to_json(active, active.outlook()) == Json{{"status", "active"}});
  const Sample arrived = sample_of(R"({"status": "completed"})");
  CHECK(outcome(arrived) == "migration completed");
  CHECK(to_json(arrived, arrived.outlook()) == Json{{"status", "completed"}});
  // Both sides look like this before anything is known; who asks knows which it is.
  const Json setup = {{"status", "setup"}};
  CHECK(progress_line(Sample::from_query(setup), {}) == "setup: connecting");
  CHECK(progress_line(Sample::from_query(setup, true), {}) == "setup: waiting for the source");
  CHECK(to_json(Sample::from_query(setup), {}).at("percent") == 0);
}

TEST_CASE("Forecast.holds_its_text_while_the_rates_jump") {
  using std::chrono::milliseconds;
  Forecast forecast;
  Sample sample = sample_of(active);
  sample.remaining = std::uint64_t{1} << 30;
  sample.rate = 0;
  sample.dirty_rate = 0;
  CHECK_FALSE(forecast.update(sample, milliseconds(0)).left.has_value());
  int changes = 0;
  std::optional<std::uint64_t> last;
  for (int look = 1; look <= 100; ++look) {
    // Around 100 MB/s, now far above it, now dirtied faster than sent.
    sample.rate = look % 2 != 0 ? 150'000'000 : 50'000'000;
    sample.dirty_rate = look % 2 != 0 ? 10'000'000 : 60'000'000;
    const Outlook outlook = forecast.update(sample, milliseconds(100 * look));
    REQUIRE(outlook.left.has_value());
    CHECK_FALSE(outlook.never);
    if (last != outlook.left) ++changes;
    last = outlook.left;
  }
  CHECK(changes <= 11);
  // 1 GiB at 65 MB/s, less or more by the weight of the last look.
  CHECK(*last > 15'000);
  CHECK(*last < 18'000);
  // A line of a log is true when it is written.
  sample.remaining = 0;
  CHECK(forecast.update(sample, milliseconds(10'001)).left.has_value());
  CHECK_FALSE(forecast.update(sample, milliseconds(10'001), true).left.has_value());
}

TEST_CASE("Forecast.follows_what_lasts_and_the_status") {
  using std::chrono::milliseconds;
  Forecast forecast;
  Sample sample = sample_of(active);
  sample.remaining = 1'000'000'000;
  sample.rate = 100'000'000;
  sample.dirty_rate = 0;
  CHECK(forecast.update(sample, milliseconds(5000)).left == 10'000);
  sample.dirty_rate = 200'000'000;
  milliseconds now(5000);
  while (now < milliseconds(20'000)) forecast.update(sample, now += milliseconds(100));
  CHECK(forecast.update(sample, now).never);
  // On the edge it stays with what it said.
  sample.dirty_rate = 98'000'000;
  while (now < milliseconds(60'000)) forecast.update(sample, now += milliseconds(100));
  CHECK(forecast.update(sample, now).never);
  sample.dirty_rate = 50'000'000;
  while (now < milliseconds(90'000)) forecast.update(sample, now += milliseconds(100));
  CHECK(forecast.update(sample, now).left.value_or(0) / 100 == 200);
  sample.status = "device";
  sample.rate = 0;
  const Outlook other = forecast.update(sample, now + milliseconds(1));
  CHECK_FALSE(other.left.has_value());
  CHECK_FALSE(other.never);
}

TEST_CASE("Progress.tells_outcomes") {
  CHECK(outcome(sample_of(R"({"status": "failed", "error-desc": "Unable to write to socket: Broken pipe"})")) ==
        "migration failed: Unable to write to socket: Broken pipe");
  CHECK(outcome(sample_of(R"({"status": "cancelled"})")) == "migration cancelled");
  CHECK(outcome(sample_of(R"({"status": "completed", "total-time": 1448, "downtime": 1,
    "ram": {"total": 67641344, "transferred": 35154146, "remaining": 0, "dirty-sync-count": 3}})")) ==
        "migration completed in 1.4 s: 33.5 MiB sent at 23.2 MiB/s, 3 passes, downtime 1 ms");
  CHECK(sample_of(R"({"status": "completed"})").percent() == 100);
  CHECK(sample_of("{}").status == "none");
}

TEST_CASE("Doctor.finds_nothing_on_a_good_host") {
  for (const Finding& one : judge(good_facts())) {
    INFO(one.name << ": " << one.text);
    CHECK(one.level == Level::good);
    CHECK(one.mend.empty());
  }
}

TEST_CASE("Doctor.names_the_mending_command") {
  Facts facts = good_facts();
  facts.uffd_device_opens = facts.uffd_syscall_works = false;
  facts.uffd_features.reset();
  CHECK(finding(facts, "userfaultfd").level == Level::missing);
  CHECK(finding(facts, "userfaultfd").mend == "setfacl -m u:someone:rw /dev/userfaultfd");
  CHECK(finding(facts, "write-protect").level == Level::note);
  facts.uffd_device_exists = false;
  CHECK(finding(facts, "userfaultfd").mend == "sysctl vm.unprivileged_userfaultfd=1");
  facts = good_facts();
  facts.uffd_device_opens = false;
  CHECK(finding(facts, "userfaultfd").level == Level::good);
  facts.uffd_features = 1u << 12;
  CHECK(finding(facts, "write-protect").level == Level::note);
  CHECK(finding(facts, "postcopy").level == Level::note);
  facts.uffd_features = 0;
  CHECK(finding(facts, "write-protect").level == Level::missing);
  facts.memfd = facts.io_uring = facts.vsock = facts.pagemap_scan = false;
  CHECK(finding(facts, "memfd").level == Level::missing);
  CHECK(finding(facts, "io_uring").mend == "sysctl kernel.io_uring_disabled=0");
  CHECK(finding(facts, "vsock").mend == "modprobe vsock");
  CHECK(finding(facts, "pagemap-scan").level == Level::note);
  facts.memlock_bytes = 8 << 20;
  facts.open_files = 256;
  facts.huge_pages_total = 0;
  facts.memory_available = 1 << 20;
  for (const char* name : {"memlock", "open-files", "hugepages", "memory"})
    CHECK(finding(facts, name).level == Level::note);
  CHECK(report(judge(facts)).find("to mend: ulimit -n 1024") != std::string::npos);
  CHECK(ctl::to_json(judge(facts)).size() == judge(facts).size());
}

TEST_CASE("Doctor.probes_this_host") {
  const Facts facts = probe();
  CHECK(facts.kernel_major >= 5);
  CHECK(facts.memory_total > 0);
  CHECK(facts.open_files > 0);
  CHECK(facts.memfd);
}

TEST_CASE("QmpClient.negotiates_and_keeps_replies_apart_from_events") {
  ScriptedServer server({"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n", "{\"return\": {}, \"id\": 1}\r\n",
                         "{\"event\": \"STOP\", \"data\": {}}\r\n{\"return\": {\"status\": \"running\"}}\r\n",
                         "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n"});
  {
    auto client = QmpClient::connect(server.path());
    REQUIRE(client.has_value());
    const auto status = client->execute("query-status");
    REQUIRE(status.has_value());
    CHECK((*status)["status"] == "running");
    const auto refused = client->execute("x", {{"a", 1}});
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().kind() == ErrorKind::peer);
    CHECK(refused.error().text() == "no");
  }
  CHECK(server.requests()[2] == "{\"execute\":\"x\",\"id\":\"migrationctl\",\"arguments\":{\"a\":1}}\n");
}

TEST_CASE("Cancel.succeeds_only_when_the_migration_is_gone_without_the_machine") {
  const auto status_of = [](std::string_view status) {
    return "{\"return\": {\"status\": \"" + std::string(status) + "\"}}\r\n";
  };
  const std::vector<std::pair<std::string_view, int>> ends = {
      {"cancelled", exit_done}, {"completed", exit_failed}, {"failed", exit_failed}, {"cancelling", exit_failed}};
  for (const auto& [end, expected] : ends) {
    INFO(end);
    // The last look is the second one where the end takes a moment.
    ScriptedServer server({"{\"QMP\": {}}\r\n", "{\"return\": {}}\r\n", status_of("active"), "{\"return\": {}}\r\n",
                           status_of("cancelling"), status_of(end)});
    {
      auto client = QmpClient::connect(server.path());
      REQUIRE(client.has_value());
      const auto code = cancel(*client, Output(), std::chrono::milliseconds(50));
      REQUIRE(code.has_value());
      CHECK(*code == expected);
    }
    CHECK(server.requests()[2].find("migrate_cancel") != std::string::npos);
  }
}

TEST_CASE("Cancel.asks_nothing_of_a_daemon_that_moves_nothing") {
  ScriptedServer server({"{\"QMP\": {}}\r\n", "{\"return\": {}}\r\n", "{\"return\": {\"status\": \"completed\"}}\r\n"});
  {
    auto client = QmpClient::connect(server.path());
    REQUIRE(client.has_value());
    const auto code = cancel(*client, Output());
    REQUIRE(code.has_value());
    CHECK(*code == exit_done);
  }
  CHECK(server.requests().size() == 2);
}

TEST_CASE("QmpClient.tells_what_is_no_daemon") {
  const auto nobody = QmpClient::connect("/nonexistent/qmp.sock");
  REQUIRE_FALSE(nobody.has_value());
  CHECK(nobody.error().kind() == ErrorKind::io);
  CHECK(nobody.error().text().find("cannot reach the daemon at /nonexistent/qmp.sock: No such file or directory") == 0);
  CHECK_FALSE(QmpClient::connect("/tmp/" + std::string(200, 'x')).has_value());
  {
    ScriptedServer other({"220 smtp.example.org\r\n"});
    CHECK(QmpClient::connect(other.path()).error().text() == "the daemon sent something that is not QMP");
  }
  {
    ScriptedServer closing({});
    CHECK(QmpClient::connect(closing.path()).error().text() == "the daemon closed the connection");
  }
}
