// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic.hpp"
#include "daemon/machine/synthetic_verify.hpp"
#include "tests/unit/catch.hpp"

#include <unistd.h>
#include <fstream>
#include <sstream>

#include <chrono>
#include <cstring>
#include <filesystem>

using namespace migrationd;
using namespace std::chrono_literals;

namespace {

using Machines = std::unique_ptr<SyntheticMachine>;

// userfaultfd may be out of reach (a container): then nothing here can run, and the reason is shown.
bool can_track() {
  const auto probe = ram::probe_dirty_log(ram::DirtyLogKind::automatic);
  if (!probe) WARN("no dirty log here: " << probe.error().text());
  return bool(probe);
}

Machines make(std::string_view words, SyntheticStart start = SyntheticStart::filled) {
  const auto options = parse_synthetic_options(words);
  REQUIRE(options.has_value());
  auto machine = SyntheticMachine::create(*options, start);
  if (!machine) FAIL(machine.error().text());
  return std::move(*machine);
}

// Returns how long it ran at most: on a busy machine more than was asked for.
std::chrono::duration<double> run_for(SyntheticMachine& machine, std::chrono::milliseconds time) {
  const auto begin = std::chrono::steady_clock::now();
  REQUIRE(machine.resume().has_value());
  std::this_thread::sleep_for(time);
  REQUIRE(machine.pause().has_value());
  return std::chrono::steady_clock::now() - begin;
}

void copy_memory(SyntheticMachine& from, SyntheticMachine& to) {
  for (std::size_t i = 0; i < from.ram().size(); ++i) {
    std::memcpy(to.ram().at(i).engine(), from.ram().at(i).engine(), from.ram().at(i).length());
  }
}

Result<nlohmann::json> verify(SyntheticMachine& machine) {
  const auto never = StopSource::make();
  REQUIRE(never.has_value());
  return machine.verify(**never);
}

std::string verify_error(SyntheticMachine& machine) {
  const auto result = verify(machine);
  return result ? "proved" : result.error().text();
}

std::uint64_t writes(SyntheticMachine& machine) {
  const auto proof = verify(machine);
  REQUIRE(proof.has_value());
  return proof->at("writes").get<std::uint64_t>();
}

}  // namespace

TEST_CASE("SyntheticMachine.proves_its_memory_at_every_stop") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=32M,working-set=2M,touched=1M,threads=3,dirty-rate=400M");
  for (int i = 0; i < 10; ++i) {
    run_for(*machine, 7ms);
    const auto proof = verify(*machine);
    if (!proof) FAIL(proof.error().text());
    CHECK(proof->at("checked-pages") == 8192 + 64);
  }
  CHECK(writes(*machine) > 512);
}

TEST_CASE("SyntheticMachine.proof_ends_at_a_stop") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=32M,working-set=32M,touched=32M");
  const auto stop = StopSource::make();
  REQUIRE(stop.has_value());
  REQUIRE(machine->verify(**stop).has_value());

  std::uint64_t pages = 0;
  const auto expected = [&](std::uint64_t) {
    if (++pages == 10) (*stop)->request();
    return std::optional<std::uint64_t>(0);
  };
  const auto& block = machine->ram().at(0);
  const auto proof = synthetic::prove_block(block, 0, 1, expected, block.pages(), **stop);
  REQUIRE_FALSE(proof.has_value());
  CHECK(proof.error().is_cancelled());
  CHECK(pages <= synthetic::verify_pages_per_look);

  const auto whole = machine->verify(**stop);
  REQUIRE_FALSE(whole.has_value());
  CHECK(whole.error().is_cancelled());
}

TEST_CASE("SyntheticMachine.untouched_memory_stays_holes") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=64G,touched=8M,working-set=8M,dirty-rate=100M");
  run_for(*machine, 20ms);
  const auto proof = verify(*machine);
  REQUIRE(proof.has_value());
  CHECK(proof->at("checked-pages") == (std::uint64_t{64} << 30) / 4096 + 64);
  CHECK(proof->at("pages-with-data") == 2048 + 64);
  CHECK(*machine->ram().at(0).allocated_bytes() == 8U << 20);
}

TEST_CASE("SyntheticMachine.remembers_that_its_guest_read_something_wrong") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=4M,working-set=1M,touched=1M,dirty-rate=400M");
  std::memset(machine->ram().at(0).engine() + 5 * 4096, 0, 4096);
  // By then the page is right again.
  run_for(*machine, 50ms);
  CHECK(verify_error(*machine) ==
        "verify: the guest read page 5 of 'synthetic.ram' and found something else than it had written there");
}

TEST_CASE("SyntheticMachine.verify_names_the_page_that_is_wrong") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=4M,working-set=1M,touched=1M");
  REQUIRE(verify_error(*machine) == "proved");
  std::byte* const memory = machine->ram().at(0).engine();
  memory[5 * 4096 + 3000] ^= std::byte{1};
  CHECK(verify_error(*machine) ==
        "block 'synthetic.ram' page 5 (offset 0x5000): expected generation 0, found generation 0 torn at byte 3000");
  memory[5 * 4096 + 3000] ^= std::byte{1};
  memory[600 * 4096] = std::byte{1};
  CHECK(verify_error(*machine) ==
        "block 'synthetic.ram' page 600 (offset 0x258000): never touched by the guest, but not zero");
  memory[600 * 4096] = std::byte{0};
  CHECK(verify_error(*machine) == "proved");
  REQUIRE(machine->ram().at(0).punch(0x7000, 0x1000).has_value());
  CHECK(verify_error(*machine) ==
        "block 'synthetic.ram' page 7 (offset 0x7000): expected generation 0, found a hole (lost)");
  REQUIRE(machine->ram().at(1).punch(0, 4096).has_value());
  std::memcpy(memory + 0x7000, memory + 0x6000, 4096);
  CHECK(verify_error(*machine) ==
        "block 'synthetic.ram' page 7 (offset 0x7000): expected generation 0, found page 6 of block 0, generation 0 "
        "(misplaced)");
}

TEST_CASE("SyntheticMachine.a_lost_write_is_found") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=4M,working-set=64K,touched=64K,dirty-rate=100M");
  std::vector<std::byte> before(65536);
  std::memcpy(before.data(), machine->ram().at(0).engine(), before.size());
  // Until page 3 was written to: that may take a while on a busy machine.
  std::byte* const page = machine->ram().at(0).engine() + 0x3000;
  for (int i = 0; i < 1000 && std::memcmp(page, before.data() + 0x3000, 4096) == 0; ++i) run_for(*machine, 10ms);
  REQUIRE(verify_error(*machine) == "proved");
  std::memcpy(page, before.data() + 0x3000, 4096);
  CHECK(verify_error(*machine).find("page 3 (offset 0x3000): expected generation ") != std::string::npos);
  CHECK(verify_error(*machine).find("found generation 0 (stale)") != std::string::npos);
}

TEST_CASE("SyntheticMachine.keeps_to_its_rate_and_to_the_throttle") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=16M,working-set=16M,threads=2,dirty-rate=40M");
  const auto span = run_for(*machine, 500ms);
  const double rate = static_cast<double>(writes(*machine)) * 4096 / span.count() / (1 << 20);
  CHECK(rate > 1);  // a busy machine is late, and it catches up 50 ms at most
  CHECK(rate < 45);
  const std::uint64_t before = writes(*machine);
  machine->throttle(90);
  const auto slow_span = run_for(*machine, 500ms);
  const double slow = static_cast<double>(writes(*machine) - before) * 4096 / slow_span.count() / (1 << 20);
  CHECK(slow > 1);
  CHECK(slow < 6);
}

TEST_CASE("SyntheticMachine.an_idle_guest_ticks_but_writes_nothing") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=1M");
  std::chrono::duration<double> span{};
  int ticks = 0;
  int runs = 0;
  // One run, but for a machine that is busy with other things.
  for (; ticks < 3 && runs < 100; ++runs) {
    span += run_for(*machine, 60ms);
    const auto proof = verify(*machine);
    REQUIRE(proof.has_value());
    CHECK(proof->at("writes") == 0);
    ticks = proof->at("ticks").get<int>();
  }
  CHECK(ticks >= 3);
  CHECK(ticks <= span.count() * 200 + runs);  // twice what is due
}

TEST_CASE("SyntheticMachine.pause_answers_at_once_and_nothing_moves_after_it") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=16M,working-set=16M,threads=2,dirty-rate=2G");
  std::vector<std::chrono::microseconds> times;
  for (int i = 0; i < 20; ++i) {
    REQUIRE(machine->resume().has_value());
    CHECK(machine->is_running());
    std::this_thread::sleep_for(3ms);
    const auto begin = std::chrono::steady_clock::now();
    REQUIRE(machine->pause().has_value());
    times.push_back(std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin));
    CHECK_FALSE(machine->is_running());
  }
  std::sort(times.begin(), times.end());
  INFO("median pause " << times[10].count() << " us");
  CHECK(times[10] < 500ms);  // 1 ms on an idle machine; no more than a bound, tests share theirs
  const auto first = writes(*machine);
  std::this_thread::sleep_for(10ms);
  CHECK(writes(*machine) == first);
}

TEST_CASE("SyntheticMachine.state_moves_to_another_process_and_runs_on") {
  if (!can_track()) return;
  const auto source = make("synthetic,ram=16M,working-set=4M,touched=2M,threads=2,dirty-rate=200M,seed=9");
  auto target = make("synthetic,ram=16M", SyntheticStart::empty);
  for (int hop = 1; hop <= 4; ++hop) {
    SyntheticMachine& from = hop % 2 != 0 ? *source : *target;
    SyntheticMachine& to = hop % 2 != 0 ? *target : *source;
    run_for(from, 15ms);
    auto state = from.save_devices("running");
    REQUIRE(state.has_value());
    CHECK(state->sections.size() == 5);
    copy_memory(from, to);
    const auto run_state = to.load_devices(std::move(*state));
    if (!run_state) FAIL(run_state.error().text());
    CHECK(*run_state == "running");
    const auto proof = verify(to);
    if (!proof) FAIL(proof.error().text());
    CHECK(proof->at("handovers") == hop);
    CHECK(proof->at("writes") == writes(from));
  }
  run_for(*source, 15ms);
  CHECK(verify_error(*source) == "proved");
}

TEST_CASE("SyntheticMachine.an_empty_machine_neither_runs_nor_saves") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=1M", SyntheticStart::empty);
  CHECK_FALSE(machine->resume().has_value());
  CHECK_FALSE(machine->save_devices("paused").has_value());
  CHECK(verify_error(*machine) == "verify: the synthetic machine is empty");
  CHECK(*machine->ram().at(0).allocated_bytes() == 0);
}

TEST_CASE("SyntheticMachine.refuses_device_state_that_does_not_fit") {
  if (!can_track()) return;
  const auto source = make("synthetic,ram=1M,seed=4");
  const auto target = make("synthetic,ram=1M", SyntheticStart::empty);
  const auto good = source->save_devices("paused");
  REQUIRE(good.has_value());
  const auto fault = [&](const DeviceState& state) {
    const auto result = target->load_devices(state);
    return result ? "loaded" : result.error().text();
  };
  const auto index_of = [&](std::string_view name) {
    for (std::size_t i = 0; i < good->sections.size(); ++i) {
      if (good->sections[i].name == name) return i;
    }
    FAIL("no section " << name);
    return std::size_t{0};
  };

  DeviceState state = *good;
  state.sections.erase(state.sections.begin() + 2);
  CHECK(fault(state).find("the stream has no state for device '") == 0);

  state = *good;
  state.sections[0].name = "timer";
  CHECK(fault(state).find("Unknown savevm section or instance 'timer' 0.") == 0);

  state = *good;
  state.sections[0].version_id = 9;
  CHECK(fault(state).find("savevm: unsupported version 9 for 'synthetic-guest' v1") == 0);

  state = *good;
  const std::size_t globalstate = index_of("globalstate");
  CHECK(state.sections[globalstate].body.size() == 104);
  state.sections[globalstate].body[3] = std::byte{0};
  CHECK(fault(state).find("run state of 0 bytes") != std::string::npos);

  state = *good;
  const std::size_t disk = index_of("0000:00:01.0/synthetic-disk");
  state.sections[disk].body.resize(state.sections[disk].body.size() - 1);
  CHECK(fault(state).find("error while loading state for instance 0x0 of device '0000:00:01.0/synthetic-disk'") == 0);

  state = *good;
  const std::size_t lines = index_of("synthetic-lines");
  state.sections[lines].body[1] ^= std::byte{1};
  CHECK(fault(state) == "device 'synthetic-lines' does not hold what belongs to its clock");

  state = *good;
  state.sections[0].body[7] ^= std::byte{1};  // ram-bytes, low byte
  CHECK(fault(state).find("contradicts itself") != std::string::npos);

  const auto larger = make("synthetic,ram=2M", SyntheticStart::empty);
  const auto refused = larger->load_devices(*good);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().text() == "the guest received has 1048576 bytes of memory, this machine 2097152");

  // Nothing of all that left a trace.
  CHECK(verify_error(*target) == "verify: the synthetic machine is empty");
  CHECK(fault(*good) == "loaded");
}

TEST_CASE("SyntheticMachine.describes_its_devices") {
  if (!can_track()) return;
  const auto machine = make("synthetic,ram=1M,dirty-rate=10M");
  for (int i = 0; i < 5; ++i) {
    run_for(*machine, 15ms);
    const auto state = machine->save_devices("paused");
    REQUIRE(state.has_value());
    const auto json = nlohmann::json::parse(*state->description);
    REQUIRE(json.at("devices").size() == state->sections.size());
    CHECK(json.at("page_size") == 4096);
    for (std::size_t at = 0; at < state->sections.size(); ++at) {
      CHECK(json.at("devices")[at].at("name") == state->sections[at].name);
    }
  }
}

TEST_CASE("SyntheticMachine.the_log_proves_when_it_ran") {
  if (!can_track()) return;
  const std::string path =
      (std::filesystem::temp_directory_path() / ("synthetic-log-" + std::to_string(::getpid()))).string();
  {
    const auto machine = make("synthetic,ram=1M,log=" + path);
    for (int runs = 0; runs < 2 || (verify(*machine)->at("ticks") < 4 && runs < 100); ++runs) {
      run_for(*machine, 30ms);
      std::this_thread::sleep_for(30ms);
    }
    std::ifstream log(path);
    std::string instance;
    std::uint64_t tick = 0;
    std::uint64_t time = 0;
    std::uint64_t count = 0;
    std::uint64_t last_time = 0;
    while (log >> instance >> tick >> time) {
      CHECK(instance == machine->instance());
      CHECK(tick == ++count);
      CHECK(time > last_time);
      last_time = time;
    }
    CHECK(verify(*machine)->at("ticks") == count);
    CHECK(count >= 4);
  }
  std::filesystem::remove(path);
  const auto options = parse_synthetic_options("synthetic,ram=1M,log=/nonexistent/log");
  CHECK(SyntheticMachine::create(*options, SyntheticStart::filled).error().text() ==
        "open the guest's log '/nonexistent/log': No such file or directory");
}

TEST_CASE("SyntheticMachine.huge_pages_are_used_or_refused") {
  if (!can_track()) return;
  const auto options = parse_synthetic_options("synthetic,ram=4M,page-size=2M,dirty-rate=100M");
  REQUIRE(options.has_value());
  auto machine = SyntheticMachine::create(*options, SyntheticStart::filled);
  if (!machine) {
    CHECK(machine.error().text().find("2 MiB pages") != std::string::npos);
    WARN("not run with huge pages: " << machine.error().text());
    return;
  }
  run_for(**machine, 15ms);
  CHECK(verify_error(**machine) == "proved");
}

TEST_CASE("SyntheticMachine.the_dirty_log_sees_every_write") {
  for (const char* kind : {"async", "sync"}) {
    const auto options = parse_synthetic_options(
        std::string("synthetic,ram=8M,working-set=4M,touched=2M,threads=2,dirty-rate=100M,dirty-log=") + kind);
    auto made = SyntheticMachine::create(*options, SyntheticStart::filled);
    if (!made) {
      WARN(kind << ": " << made.error().text());
      continue;
    }
    SyntheticMachine& machine = **made;
    std::vector<std::byte> copy(8U << 20);
    REQUIRE(machine.resume().has_value());
    REQUIRE(machine.dirty_log()->start().has_value());
    std::memcpy(copy.data(), machine.ram().at(0).engine(), copy.size());
    ram::DirtyBitmaps dirty;
    for (std::size_t i = 0; i < machine.ram().size(); ++i) dirty.emplace_back(machine.ram().at(i).pages());
    const auto bring = [&] {
      REQUIRE(machine.dirty_log()->sync(dirty).has_value());
      for (std::size_t page = dirty[0].find_set(0); page < dirty[0].size(); page = dirty[0].find_set(page + 1)) {
        std::memcpy(copy.data() + page * 4096, machine.ram().at(0).engine() + page * 4096, 4096);
      }
      dirty[0].clear_all();
    };
    for (int pass = 0; pass < 5; ++pass) {
      std::this_thread::sleep_for(5ms);
      bring();
    }
    REQUIRE(machine.pause().has_value());
    bring();
    machine.dirty_log()->stop();
    CHECK(std::memcmp(copy.data(), machine.ram().at(0).engine(), copy.size()) == 0);
    CHECK(verify_error(machine) == "proved");
  }
}
