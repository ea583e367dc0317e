// SPDX-License-Identifier: Apache-2.0
#include "base/bitmap.hpp"
#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;

namespace {

Result<int> half(int value) {
  if (value % 2 != 0) return machine_error("odd");
  return value / 2;
}

Result<int> quarter(int value) {
  MD_TRY(const int first, half(value));
  MD_TRY(const int second, half(first));
  return second;
}

}  // namespace

TEST_CASE("Error.context_is_put_in_front") {
  CHECK(wire_error("offset is odd").with("block 'a'").with("load").text() == "load: block 'a': offset is odd");
}

TEST_CASE("Error.keeps_errno") {
  const Error error = Error::from_errno("open 'x'", ENOENT);
  CHECK(error.sys_errno() == ENOENT);
  CHECK(error.text() == "open 'x': No such file or directory");
}

TEST_CASE("Result.try_passes_values_and_errors") {
  CHECK(*quarter(8) == 2);
  CHECK(quarter(6).error().text() == "odd");
}

TEST_CASE("printable.escapes_and_cuts") {
  CHECK(printable(std::string_view("a\0b\x1b", 4)) == "a\\x00b\\x1b");
  CHECK(printable(std::string(100, 'x'), 4) == "xxxx...");
}

TEST_CASE("ByteReader.refuses_to_read_past_its_end") {
  ByteWriter out;
  out.u8(1).u16(0x0203).u32(0x04050607).u64(8).str8("name");
  ByteReader in(out.view());
  CHECK(*in.u8() == 1);
  CHECK(*in.u16() == 0x0203);
  CHECK(*in.u32() == 0x04050607);
  CHECK(*in.u64() == 8);
  CHECK(*in.str8() == "name");
  CHECK(in.at_end());
  CHECK_FALSE(in.u8());
  ByteReader cut(out.view().first(16));
  CHECK(cut.skip(15));
  CHECK_FALSE(cut.str8());
}

TEST_CASE("Bitmap.ranges_and_searches_cross_words") {
  Bitmap map(200);
  map.set_range(60, 80);
  CHECK(map.count() == 80);
  CHECK(map.find_set(0) == 60);
  CHECK(map.find_clear(60) == 140);
  CHECK(map.find_set(140) == 200);
  map.clear_range(64, 64);
  CHECK(map.count() == 16);
  CHECK(map.find_set(64) == 128);
  map.set_all();
  CHECK(map.count() == 200);
  CHECK(map.find_clear(0) == 200);
}

TEST_CASE("Bitmap.begins_clear_and_inverts_within_its_size") {
  for (const std::size_t bits : {1, 63, 64, 65, 1 << 20}) {
    Bitmap map(bits);
    CHECK(map.count() == 0);
    map.set(bits - 1);
    Bitmap other = map;
    other.invert();
    CHECK(other.count() == bits - 1);
    CHECK(other.find_set(bits - 1) == bits);
    other.invert();
    CHECK(other.count() == 1);
    CHECK(other.test(bits - 1));
  }
}

TEST_CASE("StopSource.wakes_a_sleeper_and_stays_raised") {
  auto stop = std::move(*StopSource::make());
  CHECK(stop->sleep_for(std::chrono::milliseconds(1)));
  stop->request();
  CHECK_FALSE(stop->sleep_for(std::chrono::hours(1)));
  CHECK(stop->requested());
}
