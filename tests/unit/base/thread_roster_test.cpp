// SPDX-License-Identifier: Apache-2.0
#include "base/thread_roster.hpp"
#include "tests/unit/catch.hpp"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <thread>

using namespace migrationd;

namespace {

unsigned first_usable_cpu() {
  cpu_set_t usable;
  REQUIRE(::sched_getaffinity(0, sizeof usable, &usable) == 0);
  for (unsigned cpu = 0; cpu < CPU_SETSIZE; ++cpu)
    if (CPU_ISSET(cpu, &usable)) return cpu;
  return 0;
}

std::string refusal(std::string_view text) {
  const auto cpus = parse_cpu_list(text);
  return cpus ? "" : cpus.error().text();
}

}  // namespace

TEST_CASE("CpuList.numbers_and_ranges") {
  const unsigned cpu = first_usable_cpu();
  const std::string number = std::to_string(cpu);
  CHECK(parse_cpu_list(number).value() == std::vector<unsigned>{cpu});
  CHECK(parse_cpu_list(number + "-" + number + "," + number).value() == std::vector<unsigned>{cpu});
  for (const char* const bad : {"", ",", "a", "1-", "-1", "0,", "0;1", "0-0-0", "99999999999", "1024"}) {
    INFO(bad);
    CHECK(refusal(bad).find("is not a list of CPUs such as 0-3,8") != std::string::npos);
  }
  CHECK(refusal("1-0").find("is not a list") != std::string::npos);
  CHECK(refusal("1023") == "CPU 1023 is not one that this process may use");
}

TEST_CASE("ThreadRoster.lists_who_is_there_the_youngest_first_and_pins_workers") {
  ThreadRoster roster;
  const unsigned cpu = first_usable_cpu();
  roster.give_cpus({cpu});
  CHECK(roster.list().empty());
  std::vector<ThreadRoster::Entry> seen;
  int pinned_to = -1;
  int id = 0;
  std::array<char, 16> name{};
  std::thread worker([&] {
    const auto mover = roster.enter("mig/src/main");
    const auto place = roster.enter_worker("mig/src/send", 254);
    id = ::gettid();
    seen = roster.list();
    ::pthread_getname_np(::pthread_self(), name.data(), name.size());
    cpu_set_t mine;
    ::pthread_getaffinity_np(::pthread_self(), sizeof mine, &mine);
    if (CPU_COUNT(&mine) == 1 && CPU_ISSET(cpu, &mine)) pinned_to = static_cast<int>(cpu);
  });
  worker.join();
  REQUIRE(seen.size() == 2);
  CHECK(seen[0].name == "mig/src/send_254");
  CHECK(seen[0].id == id);
  CHECK(seen[1].name == "mig/src/main");
  CHECK(std::string_view(name.data()) == "mig/src/send_25");
  CHECK(pinned_to == static_cast<int>(cpu));
  CHECK(roster.list().empty());
}
