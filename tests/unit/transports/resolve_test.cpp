// SPDX-License-Identifier: Apache-2.0
//
// Name look-ups that hang: the stop and the limit leave them, their number is bounded, and they are joined later.
#include "tests/unit/transports/support.hpp"
#include "transports/socket_address.hpp"

#include <atomic>

using namespace migrationd;
using namespace migrationd::testing;
using namespace migrationd::transports;

namespace {

std::atomic<bool> resolver_hangs{false};
std::atomic<int> look_ups_running{0};

int hanging(const char*, const char*, const addrinfo*, addrinfo**) {
  ++look_ups_running;
  while (resolver_hangs) std::this_thread::sleep_for(1ms);
  --look_ups_running;
  return EAI_AGAIN;
}

const InetAddress somewhere{.host = "somewhere.invalid", .port = "1"};

std::string error_of(const ResolveOptions& options) {
  const auto found = resolve(somewhere, options);
  REQUIRE_FALSE(found.has_value());
  return found.error().text();
}

void let_all_go() {
  resolver_hangs = false;
  for (int i = 0; i < 30000 && look_ups_running > 0; ++i) std::this_thread::sleep_for(1ms);
  REQUIRE(look_ups_running == 0);
}

}  // namespace

TEST_CASE("Resolve.a_hanging_look_up_is_left_at_the_stop") {
  const auto stop = make_stop();
  resolver_hangs = true;
  LateStop late(*stop);
  const auto found = resolve(somewhere, {.stop = stop.get(), .look_up = hanging});
  late.check_prompt();
  REQUIRE_FALSE(found.has_value());
  CHECK(found.error().is_cancelled());
  let_all_go();
}

TEST_CASE("Resolve.hanging_look_ups_are_limited_in_time_and_number") {
  resolver_hangs = true;
  const ResolveOptions options{.limit = 5ms, .look_up = hanging};
  const std::string prefix = "address resolution failed for somewhere.invalid:1: ";
  for (int i = 0; i < 8; ++i) CHECK(error_of(options) == prefix + "timed out");
  CHECK(error_of(options) == prefix + "too many look-ups are still running");
  let_all_go();
  // Those left behind have ended by now, or within a moment: there is room again.
  std::string text;
  for (int i = 0; i < 6000; ++i) {
    text = error_of({.look_up = hanging});
    if (text.find("too many") == std::string::npos) break;
    std::this_thread::sleep_for(5ms);
  }
  CHECK(text == prefix + "Temporary failure in name resolution");
}

TEST_CASE("Resolve.numbers_need_no_look_up") {
  const auto four = resolve({.host = "127.0.0.1", .port = "80"}, {.look_up = nullptr});
  REQUIRE(four.has_value());
  REQUIRE(four->size() == 1);
  CHECK(four->front().family() == AF_INET);
  const auto mapped = resolve({.host = "127.0.0.1", .port = "80", .ipv4 = false}, {.look_up = nullptr});
  REQUIRE(mapped.has_value());
  CHECK(mapped->front().family() == AF_INET6);
  CHECK_FALSE(resolve({.host = "::1", .port = "80", .ipv6 = false}, {.look_up = nullptr}).has_value());
  CHECK(resolve({.host = "", .port = "0"}, {.passive = true, .look_up = nullptr}).has_value());
}
