// SPDX-License-Identifier: Apache-2.0
//
// Two versions of a device set compared, over dumps that the library wrote: every change that the rules of
// compatibility name (docs/formats/vmstate.md), with what it does in each direction.
#include "tools/migrationctl/device_tables.hpp"
#include "tests/unit/catch.hpp"
#include "vmstate/device_set.hpp"
#include "vmstate/shapes.hpp"

#include <fmt/format.h>

using namespace migrationd;
using namespace migrationd::ctl;
namespace vs = migrationd::vmstate;

namespace {

struct Inner {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
};
constexpr vs::Field inner_fields[] = {vs::field<&Inner::low>("low"), vs::field<&Inner::high>("high")};
constexpr auto inner = vs::describe<Inner>("inner", 1).fields(inner_fields);
constexpr vs::Field grown_fields[] = {vs::field<&Inner::low>("low"), vs::field<&Inner::high>("high"),
                                      vs::unused<Inner>(2)};
constexpr auto grown = vs::describe<Inner>("inner", 1).fields(grown_fields);
constexpr auto element = vs::describe<Inner>("inner", 0).fields(inner_fields);

struct Clock {
  std::uint64_t ticks = 0;
  std::uint32_t rate = 0;
  std::int32_t drift = 0;
  std::uint16_t small = 0;
  std::uint8_t count = 0;
  std::array<std::uint32_t, 8> laps{};
  std::vector<std::uint32_t> many;
  std::list<Inner> list;
  std::array<std::byte, 4> raw{};
  Inner one;
  bool fast() const { return rate > 1; }
};

template <class... Rows>
std::vector<vs::Field> rows(Rows... all) {
  return {static_cast<const vs::Field&>(all)...};
}

// The dump of one device, as read back.
TableSet dumped(const vs::Description& table, const char* path = "") {
  Clock object;
  vs::DeviceSet set;
  REQUIRE(set.add_table(table, &object, {path}).has_value());
  auto read = parse_tables(set.dump_tables("test"));
  INFO((read ? std::string() : read.error().text()));
  REQUIRE(read.has_value());
  return std::move(*read);
}

// "severity: text" of every finding; "" when there is none.
std::string found(const TableSet& writer, const TableSet& reader) {
  std::string out;
  for (const TableFinding& finding : compare_tables(writer, reader).findings) {
    if (!out.empty()) out += "; ";
    out += fmt::format("{}: {}", to_name(finding.severity), finding.text);
  }
  return out;
}

constexpr auto clock_2 = vs::describe<Clock>("clock", 2).readable_from(1);

struct Pair {
  std::vector<vs::Field> older_rows;
  std::vector<vs::Field> newer_rows;
  vs::Description older_table = clock_2;
  vs::Description newer_table = clock_2;

  Pair(std::vector<vs::Field> older, std::vector<vs::Field> newer)
      : older_rows(std::move(older)), newer_rows(std::move(newer)) {
    older_table.rows = older_rows;
    newer_table.rows = newer_rows;
  }
  std::string forward() const { return found(dumped(older_table), dumped(newer_table)); }
  std::string backward() const { return found(dumped(newer_table), dumped(older_table)); }
};

const auto ticks = vs::field<&Clock::ticks>("ticks");
const auto rate = vs::field<&Clock::rate>("rate");

}  // namespace

TEST_CASE("CompareDevices.the_same_tables_load_both_ways") {
  const Pair same(rows(ticks, rate, vs::structure<&Clock::one>("one", inner)),
                  rows(ticks, rate, vs::structure<&Clock::one>("one", inner)));
  CHECK(same.forward().empty());
  CHECK(same.backward().empty());
}

TEST_CASE("CompareDevices.a_field_of_a_new_version_is_read_from_old_streams_only") {
  Pair added(rows(ticks), rows(ticks, rate));
  added.newer_rows[1].version = 3;
  added.newer_table.version = 3;
  CHECK(added.forward().empty());
  CHECK(added.backward() == "never: version 3 is written, 2 is the newest that is read");
}

TEST_CASE("CompareDevices.a_field_added_without_a_version_is_found") {
  const Pair added(rows(ticks), rows(ticks, rate));
  CHECK(added.forward() == "never: 'rate' (uint32) is read and not written");
  CHECK(added.backward() == "never: 'rate' (uint32) is written and not read");
}

TEST_CASE("CompareDevices.a_minimum_raised_ends_old_streams") {
  Pair raised(rows(ticks), rows(ticks));
  raised.newer_table.version = 4;
  raised.newer_table.minimum_version = 3;
  CHECK(raised.forward() == "never: version 2 is written, 3 is the oldest that is read");
  raised.newer_table.load_old = [](const vs::Description&, void*, std::uint32_t, ByteReader&) -> Result<void> {
    return {};
  };
  raised.newer_table.minimum_version_old = 1;
  CHECK(raised.forward().find("sometimes: version 2 is read by a reader of old versions") == 0);
}

TEST_CASE("CompareDevices.a_gap_of_the_same_size_keeps_the_format") {
  const Pair dropped(rows(ticks, rate, vs::field<&Clock::drift>("drift")), rows(ticks, vs::unused<Clock>(8)));
  CHECK(dropped.forward().empty());
  CHECK(dropped.backward().empty());
  const Pair wrong(rows(ticks, rate), rows(ticks, vs::unused<Clock>(2)));
  CHECK(wrong.forward() == "never: 'rate' (uint32) is written where 'unused' (unused_buffer of 2 bytes) is read");
  const Pair buffers(rows(rate), rows(vs::buffer<&Clock::raw>("raw")));
  CHECK(buffers.forward().empty());
}

TEST_CASE("CompareDevices.other_sizes_and_orders_are_found") {
  const Pair width(rows(ticks, rate), rows(ticks, vs::field<&Clock::small>("rate")));
  CHECK(width.forward() == "never: 'rate' (uint32) is written where 'rate' (uint16) is read");
  const Pair sign(rows(rate), rows(vs::field<&Clock::drift>("rate")));
  CHECK(sign.forward() == "note: 'rate' (uint32) is read as 'rate' (int32)");
  const Pair agreed(rows(rate), rows(vs::equal<&Clock::rate>("rate")));
  CHECK(agreed.forward().empty());
  const Pair renamed(rows(rate), rows(vs::field<&Clock::rate>("pace")));
  CHECK(renamed.forward().empty());
  const Pair longer(rows(vs::field<&Clock::laps>("laps")), rows(vs::part<&Clock::laps, 0, 7>("laps")));
  CHECK(longer.forward() == "never: 'laps' (uint32 x 8) is written where 'laps' (uint32 x 7) is read");
}

TEST_CASE("CompareDevices.bounds_and_conditions_depend_on_the_state") {
  const auto count = vs::field<&Clock::count>("count");
  const Pair bound(rows(count, vs::allocated<&Clock::many, &Clock::count>("many", 64)),
                   rows(count, vs::allocated<&Clock::many, &Clock::count>("many", 32)));
  CHECK(bound.forward() == "sometimes: 'many' (uint32 x 'count') may have 64 elements, of which 32 are read");
  CHECK(bound.backward().empty());
  const Pair condition(rows(ticks, rate), rows(ticks, rate.when<&Clock::fast>()));
  CHECK(condition.forward() == "sometimes: 'rate' (uint32) is there on a condition on one side only");
  const Pair gone(rows(ticks, rate.when<&Clock::fast>()), rows(ticks));
  CHECK(gone.forward() == "sometimes: 'rate' (uint32) is written on a condition, and not read");
  CHECK(gone.backward() == "sometimes: 'rate' (uint32) is read on a condition, and not written");
}

TEST_CASE("CompareDevices.nested_structs_have_no_version_of_their_own") {
  const Pair once(rows(vs::structure<&Clock::one>("one", inner)), rows(vs::structure<&Clock::one>("one", grown)));
  CHECK(once.forward() == "never: 'one.unused' (unused_buffer of 2 bytes) is read and not written");
  const Pair lists(rows(vs::queue<&Clock::list>("list", element, 4)), rows(vs::list<&Clock::list>("list", element, 4)));
  CHECK(lists.forward().empty());
}

TEST_CASE("CompareDevices.subsections_fail_only_when_they_are_sent") {
  static constexpr auto always = vs::describe<Clock>("clock/extra", 1);
  vs::Description sometimes = always;
  sometimes.needed = [](const void*) { return true; };
  const vs::Description* always_parts[] = {&always};
  const vs::Description* sometimes_parts[] = {&sometimes};
  Pair pair(rows(ticks), rows(ticks));
  pair.newer_table.parts = always_parts;
  CHECK(pair.forward().empty());
  CHECK(pair.backward() == "never: subsection 'clock/extra' is unknown");
  pair.newer_table.parts = sometimes_parts;
  CHECK(pair.backward() == "sometimes: subsection 'clock/extra' is unknown");
  vs::Description newer = sometimes;
  newer.version = 2;
  const vs::Description* newer_parts[] = {&newer};
  pair.older_table.parts = sometimes_parts;
  pair.newer_table.parts = newer_parts;
  CHECK(pair.backward() == "sometimes: subsection 'clock/extra': version 2 is written, 1 is the newest that is read");
}

TEST_CASE("CompareDevices.devices_are_known_by_id_and_instance") {
  Pair pair(rows(ticks), rows(ticks));
  CHECK(found(dumped(pair.older_table), dumped(pair.newer_table, "pci/1")) ==
        "never: the device is unknown; note: no state comes for the device: it stays as it is made");
  pair.newer_table.unmigratable = true;
  CHECK(pair.forward() == "never: the device forbids migration where it is read");
  CHECK(pair.backward() == "never: the device forbids migration where it is sent");
}

TEST_CASE("CompareDevices.several_devices_find_their_own") {
  Pair pair(rows(ticks), rows(ticks));
  TableSet many;
  for (const char* const path : {"a", "a/rather/long/path/that/is/kept/apart", "b"}) {
    many.devices.push_back(dumped(pair.older_table, path).devices.front());
  }
  CHECK(found(many, many).empty());
  TableSet fewer = many;
  fewer.devices.erase(fewer.devices.begin() + 1);
  CHECK(found(many, fewer) == "never: the device is unknown");
}

TEST_CASE("CompareDevices.what_is_no_dump_is_refused") {
  const auto refused = [](std::string_view text) { return parse_tables(text).error().text(); };
  CHECK(refused("") == "this is no JSON");
  CHECK(refused("[]") == "this is no dump of device tables (\"device-tables\": 1)");
  CHECK(refused(R"({"device-tables": 2})") == "this is no dump of device tables (\"device-tables\": 1)");
  CHECK(refused(R"({"device-tables": 1})") == "'devices' is missing");
  CHECK(refused(R"({"device-tables": 1, "devices": 7})") == "'devices' is no list");
  CHECK(refused(R"({"device-tables": 1, "devices": [7]})") == "an object is missing");
  CHECK(refused(R"({"device-tables": 1, "devices": [{"name": "a"}]})") == "device 'a': 'vmsd_name' is missing");
  CHECK(refused(R"({"device-tables": 1, "devices": [{"name": "a", "vmsd_name": "a", "version": -1, "fields": []}]})") ==
        "device 'a': 'version' is no number");
  CHECK(
      refused(R"({"device-tables": 1, "devices": [{"name": "a", "vmsd_name": "a", "version": 1, "fields": [{}]}]})") ==
      "device 'a': 'a': 'name' is missing");
  std::string deep = R"({"device-tables": 1, "devices": [{"name": "a", "instance_id": 0, )";
  const std::string nest = R"("vmsd_name": "t", "version": 1, "fields": [{"name": "f", "type": "struct", "struct": {)";
  for (int i = 0; i < 200; ++i) deep += nest;
  deep += R"("vmsd_name": "t", "version": 1, "fields": [])";
  for (int i = 0; i < 200; ++i) deep += "}}]";
  deep += "}]}";
  CHECK(refused(deep).find("tables are nested too deep") != std::string::npos);
}
