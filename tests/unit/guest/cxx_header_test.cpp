// SPDX-License-Identifier: Apache-2.0
// The C++ header: tables of the VMState library as they are, callbacks as functions, exceptions as refusals.
#include "guest/migrationd_guest.hpp"
#include "guest/sealed_state.hpp"
#include "tests/unit/guest/recorder.hpp"

#include <atomic>
#include <stdexcept>

using namespace migrationd;
using namespace migrationd::guest;
using namespace migrationd::guest::test;

namespace {

struct Clock {
  std::uint64_t ticks = 5;
  bool alarm = true;
  Result<void> check() {
    if (ticks == 13) return wire_error("13 ticks are no time");
    return {};
  }
};
constexpr vmstate::Field clock_fields[] = {
    vmstate::field<&Clock::ticks>("ticks"),
    vmstate::field<&Clock::alarm>("alarm"),
};
constexpr auto clock_description = vmstate::describe<Clock>("clock", 1).fields(clock_fields).post_load<&Clock::check>();

}  // namespace

TEST_CASE("AttachedGuest.saves_and_loads_by_a_table_of_the_vmstate_library") {
  Clock clock;
  auto made = AttachedGuest::make("cxx", {});
  REQUIRE(made.has_value());
  AttachedGuest guest = *std::move(made);
  FakeDaemon daemon;
  REQUIRE(guest.new_block("ram", 4096).has_value());
  REQUIRE(guest.add_device(clock_description, clock).has_value());
  CHECK(!guest.add_device(clock_description, clock, "", 0).has_value());
  CHECK(attach(guest.get(), daemon, MD_PAUSED).devices.size() == 1);
  auto saved = daemon.call(Type::save, Empty{});
  REQUIRE(saved->fds.size() == 1);
  auto sections = *decode_state(*read_state(saved->fds[0].get(), decode<StateLength>(saved->body)->length));
  CHECK(sections[0].description ==
        R"("vmsd_name": "clock", "version": 1, "fields": [{"name": "ticks", "type": "uint64", "size": 8}, )"
        R"({"name": "alarm", "type": "bool", "size": 1}])");
  const auto load = [&] {
    const Bytes bytes = *encode_state(sections);
    const auto file = make_state(bytes);
    const int fds[] = {file->get()};
    return daemon.why_not(Type::load, StateLength{bytes.size()}, fds);
  };
  clock.ticks = 0;
  CHECK(load().empty());
  CHECK(clock.ticks == 5);
  sections[0].body[7] = std::byte{13};
  CHECK(load() == "load device 'clock' instance 0: load() refused: 13 ticks are no time");
}

TEST_CASE("AttachedGuest.callbacks_refuse_by_results_and_by_exceptions") {
  AttachedGuest::Callbacks callbacks;
  int stops = 0;
  callbacks.stop = [&]() -> Result<void> {
    if (++stops == 1) return machine_error("busy");
    if (stops == 2) throw std::runtime_error("thrown");
    return {};
  };
  std::atomic<bool> told = false;
  callbacks.event = [&](md_event event, std::string_view why) {
    if (event == MD_STAYS && why == "no") told = true;
  };
  auto made = AttachedGuest::make("cxx", std::move(callbacks));
  REQUIRE(made.has_value());
  AttachedGuest guest = *std::move(made);
  FakeDaemon daemon;
  REQUIRE(guest.new_block("ram", 4096).has_value());
  attach(guest.get(), daemon, MD_RUNNING);
  CHECK(daemon.why_not(Type::stop, Empty{}) == "stop() refused: busy");
  CHECK(daemon.why_not(Type::stop, Empty{}) == "stop() refused: thrown");
  daemon.notify(Type::outcome, OutcomeNotice{Outcome::stays, "no"});
  daemon.must(Type::stop, Empty{});
  CHECK(told);
  CHECK(!AttachedGuest::make("", {}).has_value());
}
