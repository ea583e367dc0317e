// SPDX-License-Identifier: Apache-2.0
#include "postcopy/background_pace.hpp"
#include "tests/unit/catch.hpp"

using migrationd::postcopy::BackgroundPace;
using namespace std::chrono_literals;

namespace {
constexpr auto none = BackgroundPace::Wait::zero();
const BackgroundPace::TimePoint start = BackgroundPace::TimePoint() + 1h;
}  // namespace

TEST_CASE("BackgroundPace.waits_until_the_first_burst_has_gone_quiet") {
  BackgroundPace pace(start);
  CHECK(pace.wait(start, {start, {}}, 0) == BackgroundPace::quiet_at_first);
  CHECK(pace.wait(start + 50ms, {start, start + 45ms}, 0) == 15ms);
  CHECK(pace.wait(start + 65ms, {start, start + 45ms}, 0) == none);
}

TEST_CASE("BackgroundPace.a_burst_without_an_end_is_given_way_to_for_a_bounded_time") {
  BackgroundPace pace(start);
  CHECK(pace.wait(start + 995ms, {start, start + 995ms}, 0) == 5ms);
  CHECK(pace.wait(start + 1s, {start, start + 999999us}, 0) == none);
}

TEST_CASE("BackgroundPace.gives_way_again_when_another_machine_is_resumed_and_not_for_ever") {
  BackgroundPace pace(start);
  pace.sent(start + 2s);
  CHECK(pace.wait(start + 2s, {start + 2s, start}, 0) == BackgroundPace::quiet_at_first);
  // One a second for ever.
  pace.sent(start + 4999ms);
  CHECK(pace.wait(start + 4999ms, {start + 4900ms, start + 4999ms}, 0) == 1ms);
  CHECK(pace.wait(start + 5003ms, {start + 4900ms, start + 5003ms}, 0) == none);
}

TEST_CASE("BackgroundPace.later_a_request_delays_a_piece_by_a_moment") {
  BackgroundPace pace(start);
  const auto now = start + 10s;
  pace.sent(now);
  CHECK(pace.wait(now, {start, now - 1ms}, 0) == none);
  CHECK(pace.wait(now, {start, now}, 0) == BackgroundPace::quiet_later);
  // Somebody asks all the time.
  CHECK(pace.wait(now + 3500us, {start, now + 3500us}, 0) == 500us);
  CHECK(pace.wait(now + 4ms, {start, now + 4ms}, 0) == none);
}

TEST_CASE("BackgroundPace.does_not_give_way_to_who_reads_its_memory_through") {
  BackgroundPace pace(start);
  std::uint64_t answered = 0;
  auto now = start;
  // A page every 50 us.
  while (pace.wait(now, {start, now}, answered) != none) {
    now += 50us;
    ++answered;
  }
  CHECK(answered >= static_cast<std::uint64_t>(BackgroundPace::patience_most));
  CHECK(now - start < 60ms);
  CHECK(pace.wait(now + 1ms, {start, now + 1ms}, answered + 20) == none);
  // It has stopped; what it asks for a little later is given way to.
  pace.sent(now + 3s);
  CHECK(pace.wait(now + 3s, {start, now + 3s}, answered + 21) == BackgroundPace::quiet_later);
}

TEST_CASE("BackgroundPace.who_asks_now_and_then_is_given_way_to_for_ever") {
  BackgroundPace pace(start);
  std::uint64_t answered = 0;
  for (auto now = start + 10s; now < start + 60s; now += 5ms) {
    pace.sent(now);
    CHECK(pace.wait(now, {start, now}, ++answered) == BackgroundPace::quiet_later);
  }
}

TEST_CASE("BackgroundPace.what_was_asked_before_a_break_is_not_held_against_it") {
  BackgroundPace pace(start, 5000);
  CHECK(pace.wait(start, {start, {}}, 5001) == BackgroundPace::quiet_at_first);
}
