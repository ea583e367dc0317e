// SPDX-License-Identifier: Apache-2.0
//
// A program of someone else's: compiled against the installed library by installed_test.py, not by the project's build.
// It is also the example of docs/formats/vmstate.md.
#include "vmstate/device_set.hpp"
#include "vmstate/shapes.hpp"

#include <cstdio>

namespace vs = migrationd::vmstate;

struct Clock {
  static constexpr std::uint32_t most_laps = 100;
  std::uint64_t ticks = 0;
  std::uint16_t lap_count = 0;
  std::vector<std::uint32_t> laps;
  std::uint32_t alarm = 0;
  bool has_alarm() const { return alarm != 0; }
};

constexpr vs::Field clock_fields[] = {
    vs::field<&Clock::ticks>("ticks"),
    vs::field<&Clock::lap_count>("lap_count"),
    vs::allocated<&Clock::laps, &Clock::lap_count>("laps", Clock::most_laps),
};
constexpr vs::Field alarm_fields[] = {vs::field<&Clock::alarm>("alarm")};
constexpr auto clock_alarm = vs::describe<Clock>("clock/alarm", 1).fields(alarm_fields).needed_if<&Clock::has_alarm>();
constexpr const vs::Description* clock_parts[] = {&clock_alarm};
constexpr auto clock_table = vs::describe<Clock>("clock", 1).fields(clock_fields).subsections(clock_parts);
static_assert(vs::check(clock_table) == vs::TableFault::none);

int main() {
  Clock source{5, 2, {7, 8}, 9};
  vs::DeviceSet set;
  if (!set.add(clock_table, source)) return 1;
  const auto saved = set.save();
  if (!saved) return 1;

  Clock loaded;
  vs::DeviceSet other;
  if (!other.add(clock_table, loaded)) return 1;
  vs::LoadPass pass(other);
  for (const auto& section : *saved) {
    const auto result = pass.load({section.name, section.instance_id, section.version_id, section.body});
    if (result) continue;
    std::printf("%s\n", result.error().text().c_str());
    return 1;
  }
  if (loaded.laps != source.laps || loaded.alarm != 9) return 1;
  std::printf("%s\n%s", vs::describe_stream(*saved, 4096).c_str(), set.dump_tables("example").c_str());
  return 0;
}
