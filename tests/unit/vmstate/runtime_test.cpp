// SPDX-License-Identifier: Apache-2.0
//
// Tables made at run time: the same bytes as the tables made by the compiler, and the same proof.
#include "vmstate/runtime.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/everything.hpp"

#include <cstddef>

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

struct Drive {
  std::uint16_t lap_count = 2;
  std::uint32_t laps[4] = {7, 8, 9, 10};
  std::uint8_t text_length = 3;
  char text[8] = {'a', 'b', 'c', 'd'};
  Pair pair{5, -6};
  bool on = true;
  int saves = 0;
};
constexpr std::uint64_t drive_owner = 77;

constexpr Field static_fields[] = {
    field<&Drive::lap_count>("lap_count"),
    counted<&Drive::laps, &Drive::lap_count>("laps"),
    field<&Drive::text_length>("text_length"),
    counted_buffer<&Drive::text, &Drive::text_length>("text"),
    structure<&Drive::pair>("pair", pair_description),
    field<&Drive::on>("on"),
    unused<Drive>(2),
};
constexpr auto static_table = describe<Drive>("drive", 1).fields(static_fields);

std::vector<Field> drive_rows() {
  return {
      field_at("lap_count", drive_owner, codec::u16, offsetof(Drive, lap_count)),
      counted_by(field_at("laps", drive_owner, codec::u32, offsetof(Drive, laps), 4), CountType::u16,
                 offsetof(Drive, lap_count)),
      field_at("text_length", drive_owner, codec::u8, offsetof(Drive, text_length)),
      counted_buffer_at("text", drive_owner, offsetof(Drive, text), 8, CountType::u8, offsetof(Drive, text_length)),
      structure_at("pair", drive_owner, pair_description, offsetof(Drive, pair), sizeof(Pair)),
      field_at("on", drive_owner, codec::boolean, offsetof(Drive, on)),
      unused_at(drive_owner, 2),
  };
}

Description table_of(std::span<const Field> rows) {
  Description out;
  out.name = "drive";
  out.version = 1;
  out.owner = drive_owner;
  out.object_bytes = sizeof(Drive);
  out.rows = rows;
  return out;
}

// What a C interface does: a callback that belongs to one description.
struct CallbackTable : Description {
  int (*callback)(void* object) = nullptr;
};

int count_saves(void* object) {
  ++static_cast<Drive*>(object)->saves;
  return 0;
}

}  // namespace

TEST_CASE("Runtime.rows_by_offset_write_and_read_the_same_bytes") {
  const auto rows = drive_rows();
  const Description table = table_of(rows);
  REQUIRE(check_now(table) == TableFault::none);
  Drive drive;
  ByteWriter by_offset;
  Layout layout;
  REQUIRE(save_state(table, &drive, by_offset, &layout).has_value());
  CHECK(to_hex(by_offset.view()) == saved_hex(static_table, drive));
  ByteWriter by_member;
  Layout same;
  REQUIRE(save(static_table, drive, by_member, &same).has_value());
  CHECK(layout == same);

  Drive loaded;
  loaded = Drive{0, {}, 0, {}, {}, false, 0};
  ByteReader in(by_offset.view());
  REQUIRE(load_state(table, &loaded, 1, in).has_value());
  CHECK(in.at_end());
  CHECK(saved_hex(static_table, loaded) == to_hex(by_offset.view()));
}

TEST_CASE("Runtime.counts_by_offset_are_compared_with_the_capacity") {
  const auto rows = drive_rows();
  const Description table = table_of(rows);
  Drive drive;
  const Bytes bytes = from_hex("0005 01");
  ByteReader in(bytes);
  CHECK(load_state(table, &drive, 1, in).error().text() == "Failed to load drive:laps: count 5 is outside 0..4");
}

TEST_CASE("Runtime.the_check_finds_what_the_compiler_would") {
  auto rows = drive_rows();
  CHECK(check_now(table_of(rows)) == TableFault::none);
  std::swap(rows[0], rows[1]);
  CHECK(check_now(table_of(rows)) == TableFault::count_after_its_array);
  rows = drive_rows();
  rows[5].name = "pair";
  CHECK(check_now(table_of(rows)) == TableFault::field_name_twice);
  rows = drive_rows();
  rows[5].owner = 1;
  CHECK(check_now(table_of(rows)) == TableFault::field_of_another_struct);
  rows = drive_rows();
  rows[5].offset = sizeof(Drive);
  CHECK(check_now(table_of(rows)) == TableFault::field_outside_object);
  rows = drive_rows();
  rows[1].count_offset = sizeof(Drive) - 1;
  CHECK(check_now(table_of(rows)) == TableFault::field_outside_object);
  CHECK(fault_name(TableFault::field_outside_object) == "field_outside_object");
}

TEST_CASE("Runtime.hooks_are_given_their_description") {
  const auto rows = drive_rows();
  CallbackTable table;
  static_cast<Description&>(table) = table_of(rows);
  table.callback = &count_saves;
  table.before_save = [](const Description& self, void* object) -> Result<void> {
    if (static_cast<const CallbackTable&>(self).callback(object) == 0) return {};
    return machine_error("callback failed");
  };
  Drive drive;
  ByteWriter out;
  REQUIRE(save_state(table, &drive, out, nullptr).has_value());
  CHECK(drive.saves == 1);
}
