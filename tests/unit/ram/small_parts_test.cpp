// SPDX-License-Identifier: Apache-2.0
#include "ram/ram_map.hpp"
#include "ram/rate_limiter.hpp"
#include "ram/zero_page.hpp"
#include "tests/unit/catch.hpp"

#include <vector>

using namespace migrationd;
using namespace migrationd::ram;
using namespace std::chrono_literals;

TEST_CASE("ZeroPage.finds_a_single_byte_anywhere_in_the_page") {
  alignas(64) static std::byte page[page_size]{};
  INFO(zero_page_method());
  CHECK(is_zero_page(page));
  for (std::byte& byte : page) {
    byte = std::byte{1};
    CHECK_FALSE(is_zero_page(page));
    byte = std::byte{0};
  }
  CHECK(is_zero_page(page));
}

TEST_CASE("RateLimiter.keeps_the_average_and_takes_changes_at_once") {
  std::atomic<std::uint64_t> limit{100'000'000};
  RateLimiter limiter(limit);
  RateLimiter::TimePoint now{};
  std::uint64_t bytes = 0;
  const auto run = [&](std::chrono::milliseconds time) {
    bytes = 0;
    const auto end = now + time;
    while (now < end) {
      limiter.sent(limiter.quantum());
      bytes += limiter.quantum();
      for (auto wait = limiter.wait(now); wait != 0ns; wait = limiter.wait(now)) {
        CHECK(wait <= RateLimiter::longest_wait);
        now += wait;
      }
    }
    return static_cast<double>(bytes) / std::chrono::duration<double>(time).count();
  };
  CHECK(run(1000ms) == Approx(1e8).epsilon(0.02));
  limit = 10'000'000;
  CHECK(run(1000ms) == Approx(1e7).epsilon(0.05));
  limit = 0;
  limiter.sent(std::uint64_t{1} << 40);
  CHECK(limiter.wait(now) == 0ns);
}

TEST_CASE("RateLimiter.saves_up_no_more_than_a_short_burst") {
  std::atomic<std::uint64_t> limit{100'000'000};
  RateLimiter limiter(limit);
  RateLimiter::TimePoint now{};
  CHECK(limiter.wait(now) == 0ns);
  now += 10s;
  CHECK(limiter.wait(now) == 0ns);
  limiter.sent(1'000'000);
  CHECK(limiter.wait(now) == 0ns);
  limiter.sent(1'000'000);
  CHECK(limiter.wait(now) > 0ns);
}
