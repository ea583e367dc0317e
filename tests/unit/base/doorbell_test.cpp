// SPDX-License-Identifier: Apache-2.0
#include "base/doorbell.hpp"
#include "tests/unit/catch.hpp"

#include <atomic>
#include <chrono>
#include <thread>

using namespace migrationd;
using namespace std::chrono_literals;

TEST_CASE("Doorbell.a_ring_before_the_wait_is_not_lost_and_several_are_one") {
  const auto stop = StopSource::make().value();
  const auto bell = Doorbell::make().value();
  bell->ring();
  bell->ring();
  CHECK(bool(bell->wait(*stop)));
  std::atomic<bool> waited{false};
  bool rung = false;
  std::thread waiter([&] {
    rung = bool(bell->wait(*stop));
    waited = true;
  });
  std::this_thread::sleep_for(20ms);
  CHECK_FALSE(waited);
  bell->ring();
  waiter.join();
  CHECK(rung);
  CHECK(waited);
}

TEST_CASE("Doorbell.the_stop_ends_the_wait") {
  const auto stop = StopSource::make().value();
  const auto bell = Doorbell::make().value();
  std::thread stopper([&] {
    std::this_thread::sleep_for(10ms);
    stop->request();
  });
  const auto waited = bell->wait(*stop);
  stopper.join();
  REQUIRE(!waited.has_value());
  CHECK(waited.error().is_cancelled());
}
