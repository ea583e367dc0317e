// SPDX-License-Identifier: Apache-2.0
//
// The bytes: the published test vectors, round trips, versions, bounds, and a cut at every byte.
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/everything.hpp"

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

struct Unsigned {
  bool a = true;
  std::uint8_t b = 0x82;
  std::uint16_t c = 0x200;
  std::uint32_t d = 0x11170;
  std::uint64_t e = 0xb8f47c;
};
constexpr Field unsigned_fields[] = {field<&Unsigned::a>("a"), field<&Unsigned::b>("b"), field<&Unsigned::c>("c"),
                                     field<&Unsigned::d>("d"), field<&Unsigned::e>("e")};
constexpr auto unsigned_table = describe<Unsigned>("unsigned", 1).fields(unsigned_fields);
static_assert(check(unsigned_table) == TableFault::none);

struct Signed {
  std::int8_t b = -65;
  std::int16_t c = -512;
  std::int32_t d = -70000;
  std::int64_t e = -12121212;
};
constexpr Field signed_fields[] = {field<&Signed::b>("b"), field<&Signed::c>("c"), field<&Signed::d>("d"),
                                   field<&Signed::e>("e")};
constexpr auto signed_table = describe<Signed>("signed", 1).fields(signed_fields);

struct Versioned {
  std::uint32_t a = 10;
  std::uint32_t b = 20;
  std::uint64_t c = 40;
};
constexpr Field versioned_fields[] = {field<&Versioned::a>("a"), field<&Versioned::b>("b").since(2),
                                      field<&Versioned::c>("c")};
constexpr auto versioned = describe<Versioned>("versioned", 2).fields(versioned_fields).readable_from(1);

struct Varray {
  std::uint16_t n = 3;
  std::array<std::uint8_t, 4> bytes{1, 2, 3, 4};
};
constexpr Field varray_fields[] = {field<&Varray::n>("n"), counted<&Varray::bytes, &Varray::n>("bytes")};
constexpr auto varray = describe<Varray>("varray", 1).fields(varray_fields);

struct Gap {};
constexpr Field gap_fields[] = {unused<Gap>(5)};
constexpr auto gap = describe<Gap>("gap", 1).fields(gap_fields);

template <class T>
Result<void> load_hex(const DescriptionOf<T>& table, T& object, std::uint32_t version, std::string_view hex_text) {
  const Bytes bytes = from_hex(hex_text);
  ByteReader in(bytes);
  MD_CHECK(load(table, object, version, in));
  if (!in.at_end()) return wire_error("bytes left over");
  return {};
}

}  // namespace

TEST_CASE("Engine.writes_the_published_vectors") {
  CHECK(saved_hex(unsigned_table, {}) ==
        "0182020000011170"
        "0000000000b8f47c");
  CHECK(saved_hex(signed_table, {}) ==
        "bffe00fffeee90"
        "ffffffffff470b84");
  CHECK(saved_hex(versioned, {}) ==
        "0000000a00000014"
        "0000000000000028");
  CHECK(saved_hex(varray, {}) == "0003010203");
  CHECK(saved_hex(gap, {}) == "0000000000");
}

TEST_CASE("Engine.reads_the_published_vectors") {
  Signed numbers{0, 0, 0, 0};
  REQUIRE(load_hex(signed_table, numbers, 1, "bf fe00 fffeee90 ffffffffff470b84").has_value());
  CHECK(numbers.b == -65);
  CHECK(numbers.c == -512);
  CHECK(numbers.d == -70000);
  CHECK(numbers.e == -12121212);
  Gap empty;
  CHECK(load_hex(gap, empty, 1, "0102030405").has_value());  // whatever the bytes are
}

TEST_CASE("Engine.an_older_version_leaves_newer_fields_alone") {
  Versioned object{0, 7, 0};
  REQUIRE(load_hex(versioned, object, 1, "0000000a 0000000000000028").has_value());
  CHECK(object.a == 10);
  CHECK(object.b == 7);
  CHECK(object.c == 40);
}

TEST_CASE("Engine.refuses_versions_outside_the_range") {
  Versioned object;
  CHECK(load_hex(versioned, object, 3, "").error().text() ==
        "versioned: incoming version_id 3 is too new for local version_id 2");
  CHECK(load_hex(versioned, object, 0, "").error().text() ==
        "versioned: incoming version_id 0 is too old for local minimum version_id  1");
  // Signed compare: the largest unsigned number is older than everything.
  CHECK(load_hex(versioned, object, 0xffffffff, "").error().text() ==
        "versioned: incoming version_id -1 is too old for local minimum version_id  1");
}

TEST_CASE("Engine.compares_a_count_with_the_capacity_before_it_stores") {
  Varray object;
  const auto refused = load_hex(varray, object, 1, "0005 0908070605");
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().text() == "Failed to load varray:bytes: count 5 is outside 0..4");
  CHECK(refused.error().kind() == ErrorKind::wire);
  CHECK(object.bytes == std::array<std::uint8_t, 4>{1, 2, 3, 4});
  CHECK(load_hex(varray, object, 1, "0000").has_value());
  CHECK(load_hex(varray, object, 1, "0004 09080706").has_value());
  CHECK(object.bytes[3] == 6);
}

TEST_CASE("Engine.refuses_to_save_a_count_above_the_capacity") {
  Varray object;
  object.n = 5;
  ByteWriter out;
  const auto refused = save(varray, object, out);
  REQUIRE_FALSE(refused.has_value());
  CHECK(refused.error().text() == "Save of field varray/bytes failed: count 5 is outside 0..4");
  CHECK(refused.error().kind() == ErrorKind::machine);
}

TEST_CASE("Engine.refuses_a_bool_that_is_neither_0_nor_1") {
  Unsigned object;
  CHECK(load_hex(unsigned_table, object, 1, "02 82 0200 00011170 0000000000b8f47c").error().text() ==
        "Failed to load unsigned:a: bool is 0x2, neither 0 nor 1");
}

TEST_CASE("Engine.everything_survives_the_round_trip") {
  for (const Everything& object : {full(), Everything{}}) {
    Everything source = object;
    ByteWriter out;
    REQUIRE(save(everything_description, source, out).has_value());
    CHECK(source == object);
    Everything loaded;
    loaded.flag = !object.flag;
    ByteReader in(out.view());
    REQUIRE(load(everything_description, loaded, 3, in).has_value());
    CHECK(in.at_end());
    CHECK(loaded == object);
  }
}

TEST_CASE("Engine.a_cut_at_every_byte_fails_or_ends_at_a_subsection") {
  Everything source = full();
  ByteWriter out;
  REQUIRE(save(everything_description, source, out).has_value());
  // Without its optional end the state is complete: the reader cannot know that more was meant to come.
  Everything bare = full();
  bare.tail_count = 0;
  bare.deep = 0;
  ByteWriter shorter;
  REQUIRE(save(everything_description, bare, shorter).has_value());
  const std::size_t with_tail = out.size() - (2 + std::string_view("everything/tail/deep").size() + 8);
  for (std::size_t length = 0; length < out.size(); ++length) {
    Everything loaded;
    ByteReader in(out.view().first(length));
    const auto result = load(everything_description, loaded, 3, in);
    const bool complete = result.has_value() && in.at_end();
    CHECK(complete == (length == shorter.size() || length == with_tail));
  }
}

TEST_CASE("Engine.error_texts_name_every_level") {
  Everything source = full();
  ByteWriter out;
  REQUIRE(save(everything_description, source, out).has_value());
  Bytes bytes(out.view().begin(), out.view().end());
  Everything loaded;
  ByteReader in(ByteView(bytes).first(96));
  const auto result = load(everything_description, loaded, 3, in);
  REQUIRE_FALSE(result.has_value());
  INFO(result.error().text());
  CHECK(result.error().text().find("Failed to load everything:inner") == 0);
  CHECK(result.error().text().find("ends too early") != std::string::npos);
}
