// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/lifecycle.hpp"
#include "daemon/migration/multifd_rules.hpp"
#include "daemon/migration/plan.hpp"
#include "daemon/migration/run_control.hpp"
#include "daemon/migration/switchover_policy.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/daemon/fake_machine.hpp"

using namespace migrationd;
using namespace migrationd::migration;
using namespace std::chrono_literals;
using migrationd::testing::FakeMachine;
using qmp::Capability;
using qmp::MigrationStatus;
using qmp::RunState;

namespace {

BandwidthMeter meter_at(std::uint64_t bytes_per_second) {
  BandwidthMeter meter;
  meter.sample(0ns, 0, 0);
  meter.sample(1s, bytes_per_second, 10);
  return meter;
}

}  // namespace

TEST_CASE("BandwidthMeter.closes_a_window_only_after_100_ms") {
  BandwidthMeter meter;
  meter.sample(0ns, 0, 0);
  meter.sample(99ms, 1000, 1);
  CHECK_FALSE(meter.measured());
  meter.sample(100ms, 1000, 1);
  REQUIRE(meter.measured());
  CHECK(meter.bytes_per_second() == Approx(10000));
  CHECK(meter.pages_per_second() == Approx(10));
  // The next window does not count what the last one counted.
  meter.sample(300ms, 1000, 1);
  CHECK(meter.bytes_per_second() == Approx(0));
}

TEST_CASE("BandwidthMeter.gives_a_rough_value_before_the_first_window_closes") {
  BandwidthMeter meter;
  meter.sample(0ns, 0, 0);
  meter.sample(9ms, 9000, 1);
  CHECK(meter.bytes_per_second() == 0);
  meter.sample(10ms, 10000, 1);
  CHECK(meter.bytes_per_second() == Approx(1000000));
  CHECK_FALSE(meter.measured());
}

TEST_CASE("SwitchoverPolicy.needs_a_bandwidth_unless_nothing_is_left") {
  const BandwidthMeter unmeasured;
  CHECK(within_limit(0, unmeasured, {}));
  CHECK_FALSE(within_limit(1, unmeasured, {}));
  CHECK_FALSE(expected_downtime(1, unmeasured, {}).has_value());
  CHECK(SwitchoverPolicy().may_switch_over(0, false, unmeasured, {}));
}

TEST_CASE("SwitchoverPolicy.compares_the_expected_downtime_with_the_limit") {
  const auto meter = meter_at(1'000'000);
  const SwitchoverLimits limits{300ms, 0};
  CHECK(expected_downtime(300'000, meter, limits) == 300ms);
  CHECK(within_limit(300'000, meter, limits));
  CHECK_FALSE(within_limit(301'000, meter, limits));
}

TEST_CASE("SwitchoverPolicy.believes_avail_switchover_bandwidth_before_its_own_measurement") {
  const auto meter = meter_at(1'000'000);
  CHECK_FALSE(within_limit(3'000'000, meter, {300ms, 0}));
  CHECK(within_limit(3'000'000, meter, {300ms, 10'000'000}));
  CHECK(within_limit(3'000'000, BandwidthMeter(), {300ms, 10'000'000}));
}

TEST_CASE("SwitchoverPolicy.sends_everything_once_before_it_stops_the_guest") {
  const auto meter = meter_at(1'000'000);
  SwitchoverPolicy policy;
  CHECK_FALSE(policy.may_switch_over(100, false, meter, {300ms, 0}));
  CHECK(policy.may_switch_over(100, true, meter, {300ms, 0}));
}

TEST_CASE("SwitchoverPolicy.goes_on_while_a_pass_makes_the_rest_much_smaller") {
  const auto meter = meter_at(1'000'000);
  const SwitchoverLimits limits{300ms, 0};
  SwitchoverPolicy policy;
  CHECK_FALSE(policy.may_switch_over(200'000, true, meter, limits));
  CHECK_FALSE(policy.may_switch_over(20'000, true, meter, limits));
  // 2 ms, then 1 ms: short enough.
  CHECK_FALSE(policy.may_switch_over(2'000, true, meter, limits));
  CHECK(policy.may_switch_over(1'000, true, meter, limits));
}

TEST_CASE("SwitchoverPolicy.stops_a_guest_that_writes_about_as_fast_as_the_link_sends") {
  const auto meter = meter_at(1'000'000);
  const SwitchoverLimits limits{300ms, 0};
  SwitchoverPolicy policy;
  CHECK_FALSE(policy.may_switch_over(400'000, true, meter, limits));
  CHECK_FALSE(policy.may_switch_over(380'000, true, meter, limits));
  CHECK(policy.may_switch_over(290'000, true, meter, limits));
}

TEST_CASE("SwitchoverPolicy.survives_a_stalled_link") {
  const auto meter = meter_at(1);
  CHECK(expected_downtime(std::uint64_t{1} << 60, meter, {}) > std::chrono::hours(24));
}

TEST_CASE("AutoConverge.brakes_after_two_high_periods_and_then_step_by_step") {
  AutoConverge converge;
  const ThrottleSettings settings;
  CHECK_FALSE(converge.on_sync(51, 100, settings).has_value());
  CHECK(converge.on_sync(51, 100, settings) == 20u);
  CHECK_FALSE(converge.on_sync(51, 100, settings).has_value());
  CHECK(converge.on_sync(51, 100, settings) == 30u);
  // A quiet period starts the count anew, and the brake stays.
  CHECK_FALSE(converge.on_sync(10, 100, settings).has_value());
  CHECK_FALSE(converge.on_sync(51, 100, settings).has_value());
  CHECK(converge.percent() == 30u);
}

TEST_CASE("AutoConverge.stops_at_the_maximum") {
  AutoConverge converge;
  ThrottleSettings settings;
  settings.maximum = 25;
  for (int i = 0; i < 10; ++i) (void)converge.on_sync(100, 1, settings);
  CHECK(converge.percent() == 25u);
}

TEST_CASE("AutoConverge.takes_smaller_steps_at_the_tail") {
  AutoConverge converge;
  ThrottleSettings settings;
  settings.tailslow = true;
  (void)converge.on_sync(100, 99, settings);
  CHECK(converge.on_sync(100, 99, settings) == 20u);
  (void)converge.on_sync(100, 99, settings);
  CHECK(converge.on_sync(100, 99, settings) == 21u);
}

TEST_CASE("Lifecycle.a_cancelled_migration_never_becomes_active_again") {
  Lifecycle life;
  CHECK_FALSE(life.cancel());
  life.start();
  CHECK(life.in_progress());
  CHECK(life.cancel());
  CHECK_FALSE(life.cancel());
  CHECK_FALSE(life.propose(MigrationStatus::active));
  CHECK(life.status() == MigrationStatus::cancelling);
  CHECK(life.propose(MigrationStatus::cancelled));
  CHECK_FALSE(life.propose(MigrationStatus::failed));
  CHECK_FALSE(life.in_progress());
}

TEST_CASE("Lifecycle.a_cancel_that_came_too_late_shows_the_truth") {
  Lifecycle life;
  life.start();
  CHECK(life.propose(MigrationStatus::active));
  CHECK_FALSE(life.propose(MigrationStatus::active));
  CHECK(life.cancel());
  CHECK(life.propose(MigrationStatus::completed));
}

TEST_CASE("RunControl.an_empty_daemon_waits_and_refuses_to_send") {
  RunControl control(true);
  CHECK(control.state() == RunState::inmigrate);
  CHECK(control.check_may_migrate().error().text() == "Guest is waiting for an incoming migration");
  CHECK_FALSE(*control.stop());
  CHECK_FALSE(*control.cont());
}

TEST_CASE("RunControl.starts_a_loaded_machine_only_if_both_sides_want_it") {
  const auto loaded = [](bool start, const char* received) {
    FakeMachine machine;
    RunControl control(start);
    control.incoming_loaded(machine, std::string(received));
    const bool resumed = *control.start_if_wanted();
    CHECK(resumed == machine.running);
    return std::make_pair(control.state(), control.outgoing_state_name());
  };
  CHECK(loaded(true, "running") == std::make_pair(RunState::running, std::string("running")));
  CHECK(loaded(false, "running") == std::make_pair(RunState::paused, std::string("paused")));
  CHECK(loaded(true, "paused") == std::make_pair(RunState::paused, std::string("paused")));
  CHECK(loaded(true, "prelaunch") == std::make_pair(RunState::prelaunch, std::string("prelaunch")));
  // A name we have no state for is kept for the next holder.
  CHECK(loaded(true, "suspended") == std::make_pair(RunState::paused, std::string("suspended")));
}

TEST_CASE("RunControl.an_aborted_switchover_leaves_the_machine_as_it_was") {
  FakeMachine machine;
  RunControl control(true);
  control.adopt(machine);
  CHECK(*control.cont());
  CHECK(*control.begin_switchover());
  CHECK(control.state() == RunState::finish_migrate);
  CHECK(control.cont().error().text() == "Migration is not finalized yet");
  CHECK(control.outgoing_state_name() == "running");
  CHECK(*control.abort_switchover());
  CHECK(control.state() == RunState::running);

  CHECK(*control.stop());
  CHECK_FALSE(*control.begin_switchover());
  CHECK_FALSE(*control.abort_switchover());
  CHECK(control.state() == RunState::paused);
  CHECK_FALSE(machine.running);
}

TEST_CASE("RunControl.a_stop_during_the_switchover_is_kept_when_it_is_given_up") {
  FakeMachine machine;
  RunControl control(true);
  control.adopt(machine);
  CHECK(*control.cont());
  CHECK(*control.begin_switchover());
  CHECK_FALSE(*control.stop());  // it stood still before: no second STOP
  CHECK(control.outgoing_state_name() == "paused");
  CHECK_FALSE(*control.abort_switchover());
  CHECK(control.state() == RunState::paused);
  CHECK_FALSE(machine.running);
  CHECK(*control.cont());
}

TEST_CASE("RunControl.a_machine_that_moved_does_not_move_again_without_a_word") {
  FakeMachine machine(MachineKind::parked);
  RunControl control(true);
  control.adopt(machine);
  CHECK(*control.cont());
  CHECK(*control.begin_switchover());
  control.finish_switchover(Ownership::handed_over);
  CHECK(control.state() == RunState::postmigrate);
  CHECK(control.check_may_migrate().error().text() == "Can't migrate the vm that was paused due to previous migration");
  CHECK(*control.cont());
  CHECK(control.ownership() == Ownership::ours);
  CHECK(control.check_may_migrate().has_value());
}

TEST_CASE("RunControl.a_parked_machine_saved_to_a_file_may_go_at_once") {
  FakeMachine parked(MachineKind::parked);
  RunControl control(true);
  control.adopt(parked);
  CHECK_FALSE(*control.begin_switchover());
  control.finish_switchover(Ownership::ours);
  CHECK(control.state() == RunState::postmigrate);
  CHECK(control.check_may_migrate().has_value());

  FakeMachine synthetic;
  RunControl other(true);
  other.adopt(synthetic);
  CHECK_FALSE(*other.begin_switchover());
  other.finish_switchover(Ownership::ours);
  CHECK_FALSE(other.check_may_migrate().has_value());
}

TEST_CASE("RunControl.an_unknown_outcome_stays_stopped_until_cont") {
  FakeMachine machine;
  RunControl control(true);
  control.adopt(machine);
  CHECK(*control.cont());
  CHECK(*control.begin_switchover());
  control.finish_switchover(Ownership::unknown);
  CHECK_FALSE(machine.running);
  CHECK(control.state() == RunState::paused);
  CHECK_FALSE(control.check_may_migrate().has_value());
  CHECK(*control.cont());
  CHECK(machine.running);
}

TEST_CASE("RunControl.a_held_machine_stands_still_whatever_is_said") {
  FakeMachine machine;
  RunControl control(true);
  control.adopt(machine);
  CHECK(*control.cont());
  REQUIRE(control.hold().has_value());
  CHECK_FALSE(machine.running);
  CHECK(control.state() == RunState::running);
  REQUIRE(control.release().has_value());
  CHECK(machine.running);

  REQUIRE(control.hold().has_value());
  CHECK(*control.stop());
  REQUIRE(control.release().has_value());
  CHECK_FALSE(machine.running);

  REQUIRE(control.hold().has_value());
  CHECK(*control.cont());
  CHECK_FALSE(machine.running);
  REQUIRE(control.release().has_value());
  CHECK(machine.running);
}

TEST_CASE("Plan.asks_for_an_answer_only_where_one_can_come") {
  qmp::Capabilities capabilities;
  capabilities.set(Capability::return_path);
  capabilities.set(Capability::switchover_ack);
  const auto answers = [&](transports::Address address) {
    return make_source_plan(capabilities, {}, address)->return_path;
  };
  CHECK(answers(transports::InetAddress{"::1", "4444", {}, {}, {}}));
  CHECK(answers(transports::UnixAddress{"/tmp/x"}));
  CHECK_FALSE(answers(transports::FileAddress{"/tmp/x", 0}));
  CHECK_FALSE(answers(transports::ExecAddress{{"/bin/sh", "-c", "cat > x"}}));
}

TEST_CASE("Plan.refuses_what_is_not_built_by_name") {
  qmp::MigrationParameters parameters;
  parameters.tls_creds = "tls0";
  const auto plan = make_source_plan({}, parameters, transports::UnixAddress{"/tmp/x"});
  REQUIRE_FALSE(plan.has_value());
  CHECK(plan.error().text().find("TLS") != std::string::npos);
}

TEST_CASE("Plan.multifd_is_latched_with_its_method_and_level") {
  qmp::Capabilities capabilities;
  qmp::MigrationParameters parameters;
  const transports::Address tcp = transports::InetAddress{};
  CHECK_FALSE(make_source_plan(capabilities, parameters, tcp)->multifd);
  capabilities.set(Capability::multifd);
  parameters.multifd_channels = 7;
  parameters.multifd_compression = qmp::MultifdCompression::zlib;
  parameters.multifd_zlib_level = 9;
  parameters.zero_page_detection = qmp::ZeroPageDetection::legacy;
  auto source = make_source_plan(capabilities, parameters, tcp);
  REQUIRE(source.has_value());
  REQUIRE(source->multifd);
  CHECK(source->multifd->channels == 7);
  CHECK(source->multifd->method == stream::MultifdMethod::zlib);
  CHECK(source->multifd->level == 9);
  CHECK(source->multifd->zero_pages == qmp::ZeroPageDetection::legacy);
  parameters.multifd_compression = qmp::MultifdCompression::zstd;
  parameters.multifd_zstd_level = 20;
  source = make_source_plan(capabilities, parameters, tcp);
  CHECK(source->multifd->method == stream::MultifdMethod::zstd);
  CHECK(source->multifd->level == 20);
  CHECK(make_destination_plan(capabilities, parameters, tcp)->multifd->channels == 7);
  for (const transports::Address& one :
       {transports::Address(transports::FdAddress{"x"}), transports::Address(transports::ExecAddress{}),
        transports::Address(transports::FileAddress{})}) {
    const auto refused = make_source_plan(capabilities, parameters, one);
    REQUIRE(!refused.has_value());
    CHECK(refused.error().text() == "Migration requires multi-channel URIs (e.g. tcp)");
  }
}

TEST_CASE("MultifdRules.follow_the_age_of_the_machine_type") {
  using qmp::ZeroPageDetection;
  using ram::MultifdZeros;
  const auto rules = [](std::string_view type) { return multifd_rules(type, ZeroPageDetection::multifd); };
  CHECK(rules("pc-i440fx-7.2") == MultifdRules{true, MultifdZeros::in_main_stream});
  CHECK(rules("pc-q35-8.0") == MultifdRules{true, MultifdZeros::in_main_stream});
  CHECK(rules("pc-q35-8.1") == MultifdRules{false, MultifdZeros::in_main_stream});
  CHECK(rules("virt-8.2") == MultifdRules{false, MultifdZeros::in_main_stream});
  CHECK(rules("s390-ccw-virtio-9.0") == MultifdRules{false, MultifdZeros::in_packets});
  CHECK(rules("pc-i440fx-10.0") == MultifdRules{false, MultifdZeros::in_packets});
  CHECK(rules("migrationd-synthetic-1") == MultifdRules{false, MultifdZeros::in_packets});
  // Of unknown age: what fails loudly where it is wrong.
  for (const auto* type : {"microvm", "pc-q35-rhel9.6.0", "pc-i440fx-jammy", "", "-", "x-", "x-1", "x-1.", "x-1.2.3"})
    CHECK(rules(type) == MultifdRules{false, MultifdZeros::in_main_stream});
  CHECK(multifd_rules("pc-i440fx-10.0", ZeroPageDetection::legacy).zeros == MultifdZeros::in_main_stream);
  CHECK(multifd_rules("pc-i440fx-7.2", ZeroPageDetection::none).zeros == MultifdZeros::none);
}
