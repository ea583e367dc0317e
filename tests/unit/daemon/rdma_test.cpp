// SPDX-License-Identifier: Apache-2.0
// Source and destination of a migration over RDMA in one process, over a device in memory: what arrives, and what is
// left when any step of it fails.
#include "daemon/machine/synthetic.hpp"
#include "daemon/migration/destination.hpp"
#include "daemon/migration/source.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/rdma_memory_fabric.hpp"

#include <atomic>
#include <cstring>
#include <optional>
#include <thread>

using namespace migrationd;
using namespace migrationd::migration;
using namespace std::chrono_literals;
using migrationd::testing::MemoryFabric;

namespace {

// A hang is a failure, not a test that never ends.
constexpr auto hang = 60s;

bool can_track() {
  const auto probe = ram::probe_dirty_log(ram::DirtyLogKind::automatic);
  if (!probe) WARN("no dirty log here: " << probe.error().text());
  return bool(probe);
}

std::unique_ptr<SyntheticMachine> make_machine(std::string_view words, SyntheticStart start) {
  const auto options = parse_synthetic_options(words);
  REQUIRE(options.has_value());
  auto machine = SyntheticMachine::create(*options, start);
  if (!machine) FAIL(machine.error().text());
  return std::move(*machine);
}

bool same_memory(SyntheticMachine& a, SyntheticMachine& b) {
  for (std::size_t i = 0; i < a.ram().size(); ++i) {
    if (std::memcmp(a.ram().at(i).engine(), b.ram().at(i).engine(), a.ram().at(i).length()) != 0) return false;
  }
  return true;
}

class NoFds final : public transports::FdSource {
 public:
  Result<UniqueFd> take_named(std::string_view) override { return plan_error("none"); }
  Result<UniqueFd> open_fdset(std::string_view, int) override { return plan_error("none"); }
  Result<void> check_mapped_fdset(std::string_view, int, bool) override { return plan_error("none"); }
};

class Statuses final : public MoverEvents {
 public:
  void status(qmp::MigrationStatus status) override {
    if (status == qmp::MigrationStatus::active) active.store(true);
  }
  void pass(std::uint64_t) override {}
  void guest_stopped() override {}
  void guest_resumed() override {}
  void paused(const Error&) override {}
  std::atomic<bool> active{false};
};

struct Settings {
  qmp::Capabilities capabilities;
  qmp::MigrationParameters parameters;
  void set(qmp::Capability capability) { capabilities.set(capability); }
};

const transports::Address address = transports::RdmaAddress{{.host = "memory", .port = "4444"}};

struct Source {
  Source(MemoryFabric& fabric, Machine& machine, const Settings& settings) {
    control.adopt(machine, machine.is_running() ? qmp::RunState::running : qmp::RunState::paused);
    limits.max_bandwidth = 0;
    NoFds fds;
    auto target = transports::prepare_outgoing(address, fds, {.rdma = &fabric});
    REQUIRE(target.has_value());
    auto plan = make_source_plan(settings.capabilities, settings.parameters, address);
    if (!plan) FAIL(plan.error().text());
    source = std::make_unique<MigrationSource>(std::move(*plan), std::move(*target), std::nullopt, machine, control,
                                               limits, progress, events, *stop, *gate, *postcopy);
  }
  RunControl control{true};
  LiveLimits limits;
  Progress progress;
  Statuses events;
  std::unique_ptr<StopSource> stop = StopSource::make().value();
  std::unique_ptr<Gate> gate = Gate::make().value();
  std::unique_ptr<PostcopyControl> postcopy = PostcopyControl::make().value();
  std::unique_ptr<MigrationSource> source;
};

struct Destination {
  // Stays paused unless told otherwise, so that its memory can be compared.
  Destination(MemoryFabric& fabric, Machine& machine, const Settings& settings, bool runs = false) : control(runs) {
    control.await_machine();
    NoFds fds;
    auto target = transports::open_incoming(address, fds, {.rdma = &fabric});
    if (!target) FAIL(target.error().text());
    auto plan = make_destination_plan(settings.capabilities, settings.parameters, address);
    REQUIRE(plan.has_value());
    destination = std::make_unique<MigrationDestination>(std::move(*plan), std::move(*target),
                                                         std::make_unique<ResidentReceiver>(machine), std::nullopt,
                                                         control, progress, events, *stop, *recovery);
  }
  RunControl control;
  Progress progress;
  Statuses events;
  std::unique_ptr<StopSource> stop = StopSource::make().value();
  std::unique_ptr<RecoveryControl> recovery = RecoveryControl::make().value();
  std::unique_ptr<MigrationDestination> destination;
};

struct Outcome {
  SourceOutcome source;
  DestinationOutcome destination;
};

// Both to their ends. `meanwhile` runs beside them.
template <class Meanwhile>
Outcome run(Source& source, Destination& destination, Meanwhile meanwhile) {
  std::optional<DestinationOutcome> arrived;
  std::optional<SourceOutcome> left;
  std::atomic<int> ended{0};
  std::atomic<bool> gone{false};  // the source
  std::atomic<bool> done{false};  // the destination
  std::thread there([&] {
    arrived.emplace(destination.destination->run());
    done = true;
    ++ended;
  });
  std::thread here([&] {
    left.emplace(source.source->run());
    gone = true;
    ++ended;
  });
  meanwhile();
  const auto deadline = std::chrono::steady_clock::now() + hang;
  while (ended < 2 && std::chrono::steady_clock::now() < deadline) {
    // A destination whose source never came to it listens for another; one that has it shall hear why it left.
    const bool hears = destination.events.active && std::chrono::steady_clock::now() < deadline - hang / 2;
    if (gone && !left->result && !hears) destination.stop->request();
    // And one that has failed listens no more.
    if (done && !arrived->result) destination.destination.reset();
    std::this_thread::sleep_for(1ms);
  }
  const bool hung = ended < 2;
  if (hung) {
    source.stop->request();
    destination.stop->request();
  }
  there.join();
  here.join();
  INFO((left->result ? "left" : left->result.error().text()));
  INFO((arrived->result ? "arrived" : arrived->result.error().text()));
  CHECK_FALSE(hung);
  return {std::move(*left), std::move(*arrived)};
}
Outcome run(Source& source, Destination& destination) {
  return run(source, destination, [] {});
}

void check_arrived(const Outcome& outcome, SyntheticMachine& from, SyntheticMachine& to) {
  if (!outcome.source.result) FAIL("source: " << outcome.source.result.error().text());
  if (!outcome.destination.result) FAIL("destination: " << outcome.destination.result.error().text());
  CHECK(outcome.source.ownership == Ownership::handed_over);
  CHECK(same_memory(from, to));
  const auto never = StopSource::make();
  const auto proof = to.verify(**never);
  if (!proof) FAIL(proof.error().text());
}

constexpr std::string_view busy = "synthetic,ram=24M,touched=10M,working-set=4M,dirty-rate=30M,threads=2";
constexpr std::string_view idle = "synthetic,ram=6M,touched=3M,working-set=2M";

}  // namespace

TEST_CASE("Rdma.a_dirtying_guest_arrives_whole") {
  if (!can_track()) return;
  Settings settings;
  bool return_path = false;
  unsigned lanes = 1;
  bool pinned = false;
  SECTION("registered chunk by chunk") {}
  SECTION("pinned") { pinned = true; }
  SECTION("with a return path") { return_path = true; }
  SECTION("over four queue pairs") { lanes = 4; }
  SECTION("with all of it") { pinned = true, return_path = true, lanes = 16; }
  if (pinned) settings.set(qmp::Capability::rdma_pin_all);
  if (return_path) settings.set(qmp::Capability::return_path);
  settings.parameters.rdma_queue_pairs = static_cast<std::uint8_t>(lanes);

  MemoryFabric fabric;
  const auto from = make_machine(busy, SyntheticStart::filled);
  const auto to = make_machine(busy, SyntheticStart::empty);
  REQUIRE(from->resume().has_value());
  Source source(fabric, *from, settings);
  Destination destination(fabric, *to, settings);
  const Outcome outcome = run(source, destination);
  check_arrived(outcome, *from, *to);
  CHECK_FALSE(from->is_running());

  CHECK(source.progress.rdma.queue_pairs == lanes);
  CHECK(source.progress.rdma.written_bytes == source.progress.normal_pages * ram::page_size);
  CHECK(source.progress.rdma.written_bytes > 0);
  // Selective signalling: fewer completions than writes and messages.
  CHECK(source.progress.rdma.completions < source.progress.rdma.writes + source.progress.rdma.control_messages);
  CHECK(destination.progress.rdma.writes == 0);
  if (pinned) CHECK(source.progress.zero_pages == 0);
  if (!pinned) CHECK(source.progress.zero_pages > 0);
}

TEST_CASE("Rdma.memory_that_was_there_before_is_replaced_or_zero") {
  if (!can_track()) return;
  MemoryFabric fabric;
  const auto from = make_machine(idle, SyntheticStart::filled);
  const auto to = make_machine(idle, SyntheticStart::empty);
  for (std::size_t i = 0; i < to->ram().size(); ++i)
    std::memset(to->ram().at(i).engine(), 0x5a, to->ram().at(i).length());
  Settings settings;
  SECTION("all of it sent") {}
  SECTION("without holes") { settings.set(qmp::Capability::skip_holes); }
  SECTION("pinned") { settings.set(qmp::Capability::rdma_pin_all); }
  SECTION("pinned and without holes") {
    settings.set(qmp::Capability::rdma_pin_all);
    settings.set(qmp::Capability::skip_holes);
  }
  Source source(fabric, *from, settings);
  Destination destination(fabric, *to, settings);
  check_arrived(run(source, destination), *from, *to);
}

TEST_CASE("Rdma.a_short_queue_only_slows_it_down") {
  if (!can_track()) return;
  MemoryFabric fabric({.send_depth = 40});
  const auto from = make_machine(busy, SyntheticStart::filled);
  const auto to = make_machine(busy, SyntheticStart::empty);
  REQUIRE(from->resume().has_value());
  Source source(fabric, *from, {});
  Destination destination(fabric, *to, {});
  check_arrived(run(source, destination), *from, *to);
}

TEST_CASE("Rdma.whichever_step_fails_both_end_and_the_machine_is_in_one_place_at_most") {
  if (!can_track()) return;
  Settings settings;
  settings.set(qmp::Capability::return_path);
  settings.parameters.rdma_queue_pairs = 2;
  const auto from = make_machine(idle, SyntheticStart::filled);
  const auto attempt = [&](std::uint64_t step, std::uint64_t& steps) {
    MemoryFabric fabric;
    const auto to = make_machine(idle, SyntheticStart::empty);
    Source source(fabric, *from, settings);
    Destination destination(fabric, *to, settings);
    fabric.fail_step(step);
    INFO("step " << step);
    Outcome outcome = run(source, destination);
    steps = fabric.steps();
    const bool arrived = bool(outcome.destination.result);
    INFO("step " << step << ": source: " << (outcome.source.result ? "completed" : outcome.source.result.error().text())
                 << "; destination: " << (arrived ? "completed" : outcome.destination.result.error().text()));
    // What did not arrive must not be gone; what arrived must not run here.
    if (!arrived) CHECK(outcome.source.ownership != Ownership::handed_over);
    if (arrived) {
      CHECK(outcome.source.ownership != Ownership::ours);
      CHECK(same_memory(*from, *to));
    }
    return arrived && outcome.source.result;
  };
  std::uint64_t steps = 0;
  REQUIRE(attempt(0, steps));
  CHECK(steps > 50);
  std::uint64_t ignored = 0;
  // Scheduling moves the numbers a little; the whole range is covered in strides that share no factor with its period.
  for (std::uint64_t step = 1; step <= steps; step += steps > 200 ? 3 : 1) attempt(step, ignored);
}

TEST_CASE("Rdma.a_cancel_ends_both_sides_wherever_they_are") {
  if (!can_track()) return;
  constexpr std::string_view endless = "synthetic,ram=64M,touched=32M,working-set=32M,dirty-rate=2G,threads=2";
  MemoryFabric fabric;
  const auto from = make_machine(endless, SyntheticStart::filled);
  const auto to = make_machine(endless, SyntheticStart::empty);
  REQUIRE(from->resume().has_value());
  Source source(fabric, *from, {});
  source.limits.downtime_limit_ms = 0;
  source.limits.max_bandwidth = 50 << 20;
  Destination destination(fabric, *to, {});
  const Outcome outcome = run(source, destination, [&] {
    while (!source.events.active) std::this_thread::sleep_for(1ms);
    source.stop->request();
  });
  REQUIRE_FALSE(bool(outcome.source.result));
  CHECK(outcome.source.result.error().is_cancelled());
  CHECK(outcome.source.ownership == Ownership::ours);
  CHECK(from->is_running());
  REQUIRE_FALSE(bool(outcome.destination.result));
  CHECK(outcome.destination.result.error().text().find("ERROR") != std::string::npos);
}

TEST_CASE("Rdma.a_source_of_another_version_is_sent_away_and_the_next_is_taken") {
  if (!can_track()) return;
  MemoryFabric fabric;
  const auto from = make_machine(idle, SyntheticStart::filled);
  const auto to = make_machine(idle, SyntheticStart::empty);
  Destination destination(fabric, *to, {});
  std::optional<DestinationOutcome> arrived;
  std::thread there([&] { arrived.emplace(destination.destination->run()); });
  ByteWriter strange;
  strange.u32(2).u32(0);
  fabric.say_instead(std::move(strange).take());
  {
    Source source(fabric, *from, {});
    const SourceOutcome refused = source.source->run();
    CHECK_FALSE(bool(refused.result));
    CHECK(refused.ownership == Ownership::ours);
  }
  fabric.say_instead({});
  Source source(fabric, *from, {});
  SourceOutcome left = source.source->run();
  there.join();
  check_arrived({std::move(left), std::move(*arrived)}, *from, *to);
}

TEST_CASE("Rdma.nobody_listening_is_an_error_of_the_source_alone") {
  MemoryFabric fabric;
  const auto from = make_machine("synthetic,ram=2M,touched=0", SyntheticStart::filled);
  Source source(fabric, *from, {});
  const SourceOutcome outcome = source.source->run();
  REQUIRE_FALSE(bool(outcome.result));
  CHECK(outcome.result.error().text() == "RDMA ERROR: connecting to destination!");
  CHECK(outcome.ownership == Ownership::ours);
}

TEST_CASE("Rdma.postcopy_goes_over_the_same_two_connections") {
  if (!can_track()) return;
  constexpr std::string_view words = "synthetic,ram=16M,touched=8M,working-set=8M,dirty-rate=100M,threads=2";
  Settings settings;
  settings.set(qmp::Capability::postcopy_ram);
  bool runs = false;
  SECTION("the guest stands still there") {}
  // It asks for pages while others come.
  SECTION("the guest runs there") { runs = true; }
  SECTION("the guest runs there, and all was pinned") {
    runs = true;
    settings.set(qmp::Capability::rdma_pin_all);
  }
  MemoryFabric fabric;
  const auto from = make_machine(words, SyntheticStart::filled);
  const auto to = make_machine(words, SyntheticStart::empty);
  REQUIRE(from->resume().has_value());
  Source source(fabric, *from, settings);
  source.limits.downtime_limit_ms = 0;
  // Most of it is still here when the guest begins to ask.
  if (runs) source.limits.max_bandwidth = 16 << 20;
  Destination destination(fabric, *to, settings, runs);
  const Outcome outcome = run(source, destination, [&] {
    while (!source.events.active) std::this_thread::sleep_for(1ms);
    source.postcopy->start();
  });
  if (!outcome.source.result) FAIL("source: " << outcome.source.result.error().text());
  if (!outcome.destination.result) FAIL("destination: " << outcome.destination.result.error().text());
  CHECK(outcome.source.ownership == Ownership::handed_over);
  if (to->is_running()) REQUIRE(to->pause().has_value());
  const auto never = StopSource::make();
  const auto proof = to->verify(**never);
  if (!proof) FAIL(proof.error().text());
}

TEST_CASE("Rdma.postcopy_with_a_qemu_7_2_is_refused_while_the_machine_is_at_the_source") {
  if (!can_track()) return;
  constexpr std::string_view words = "synthetic,ram=16M,touched=8M,working-set=8M,dirty-rate=100M,threads=2";
  Settings settings;
  settings.set(qmp::Capability::postcopy_ram);
  MemoryFabric::Options options;
  bool pinned = false;
  SECTION("to one") { options.old_destination = true; }
  SECTION("to one, and all is pinned") { options.old_destination = pinned = true; }
  SECTION("from one") { options.old_source = true; }
  if (pinned) settings.set(qmp::Capability::rdma_pin_all);
  MemoryFabric fabric(options);
  const auto from = make_machine(words, SyntheticStart::filled);
  const auto to = make_machine(words, SyntheticStart::empty);
  REQUIRE(from->resume().has_value());
  Source source(fabric, *from, settings);
  source.limits.downtime_limit_ms = 0;
  // Before it has heard anything from there.
  source.postcopy->start();
  Destination destination(fabric, *to, settings);
  const Outcome outcome = run(source, destination);
  REQUIRE_FALSE(bool(outcome.source.result));
  REQUIRE_FALSE(bool(outcome.destination.result));
  const bool here = options.old_destination;
  const std::string text = (here ? outcome.source.result : outcome.destination.result).error().text();
  INFO(text);
  CHECK(text.find(here ? "postcopy over RDMA with QEMU 7.2 breaks" : "postcopy over RDMA from QEMU 7.2 breaks") !=
        std::string::npos);
  CHECK(outcome.source.ownership == Ownership::ours);
  CHECK(from->is_running());
  CHECK_FALSE(to->is_running());
}

TEST_CASE("Rdma.what_cannot_go_together_is_refused_before_anything_is_connected") {
  const auto refusal = [](std::initializer_list<qmp::Capability> capabilities) {
    Settings settings;
    for (const qmp::Capability capability : capabilities) settings.set(capability);
    const auto source = make_source_plan(settings.capabilities, settings.parameters, address);
    const auto destination = make_destination_plan(settings.capabilities, settings.parameters, address);
    REQUIRE_FALSE(source.has_value());
    REQUIRE_FALSE(destination.has_value());
    CHECK(source.error().text() == destination.error().text());
    return source.error().text();
  };
  using C = qmp::Capability;
  CHECK(refusal({C::multifd}) == "Migration requires multi-channel URIs (e.g. tcp)");
  CHECK(refusal({C::postcopy_ram, C::postcopy_preempt}) == "Migration requires multi-channel URIs (e.g. tcp)");
  CHECK(refusal({C::mapped_ram}) == "Migration requires seekable transport (e.g. file)");
  CHECK(refusal({C::xbzrle}) == "RDMA and XBZRLE can't be used together");
}
