// SPDX-License-Identifier: Apache-2.0
//
// Subsections on the wire: what is ours, what is left alone, what is refused. The bytes of the first test are the
// PS/2 keyboard controller of a real machine's stream (docs/formats/vmstate.md, "A worked example").
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/everything.hpp"

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

struct Kbd {
  std::uint8_t write_cmd = 0, status = 0, mode = 0, pending_tmp = 0;
  std::uint32_t migration_flags = 0, obsrc = 0;
  std::uint8_t obdata = 0, cbdata = 0;
  bool is_extended() const { return obsrc != 0; }
};
struct Isa {
  Kbd kbd;
  std::uint8_t after = 0x05;
};

constexpr Field extended_fields[] = {
    field<&Kbd::migration_flags>("migration_flags"),
    field<&Kbd::obsrc>("obsrc"),
    field<&Kbd::obdata>("obdata"),
    field<&Kbd::cbdata>("cbdata"),
};
constexpr auto extended =
    describe<Kbd>("pckbd/extended_state", 0).fields(extended_fields).needed_if<&Kbd::is_extended>();
constexpr auto second = describe<Kbd>("pckbd/second", 0).needed_if<&Kbd::is_extended>();
constexpr const Description* kbd_parts[] = {&extended};
constexpr const Description* two_parts[] = {&extended, &second};
constexpr Field kbd_fields[] = {
    field<&Kbd::write_cmd>("write_cmd"),
    field<&Kbd::status>("status"),
    field<&Kbd::mode>("mode"),
    field<&Kbd::pending_tmp>("pending_tmp"),
};
constexpr auto kbd_table = describe<Kbd>("pckbd", 3).fields(kbd_fields).subsections(kbd_parts);
constexpr auto two_table = describe<Kbd>("pckbd", 3).fields(kbd_fields).subsections(two_parts);
constexpr Field isa_fields[] = {structure<&Isa::kbd>("kbd", kbd_table)};
constexpr auto isa_table = describe<Isa>("pckbd", 3).fields(isa_fields);
constexpr Field followed_fields[] = {structure<&Isa::kbd>("kbd", kbd_table), field<&Isa::after>("after")};
constexpr auto followed_table = describe<Isa>("isa", 3).fields(followed_fields);
static_assert(check(isa_table) == TableFault::none);
static_assert(check(followed_table) == TableFault::none);
static_assert(check(two_table) == TableFault::none);

constexpr std::string_view fields = "00 1c 61 00";
const std::string subsection = "05 14 70636b62642f657874656e6465645f7374617465 00000000 00000000 00000001 fa 00";

template <class T>
Result<std::size_t> left_over(const DescriptionOf<T>& table, T& object, const std::string& text) {
  const Bytes bytes = from_hex(text);
  ByteReader in(bytes);
  MD_CHECK(load(table, object, 3, in));
  return in.remaining();
}

}  // namespace

TEST_CASE("Subsection.a_real_keyboard_controller_is_read_and_written_alike") {
  Isa object;
  const std::string text = std::string(fields) + subsection;
  CHECK(*left_over(isa_table, object, text) == 0);
  CHECK(object.kbd.status == 0x1c);
  CHECK(object.kbd.obsrc == 1);
  CHECK(object.kbd.obdata == 0xfa);
  CHECK(saved_hex(isa_table, object) == to_hex(from_hex(text)));
  ByteWriter out;
  Layout layout;
  REQUIRE(save(isa_table, object, out, &layout).has_value());
  CHECK(json_members(layout) ==
        R"("vmsd_name": "pckbd", "version": 3, "fields": [{"name": "kbd", "type": "struct", "struct": )"
        R"({"vmsd_name": "pckbd", "version": 3, "fields": [{"name": "write_cmd", "type": "uint8", "size": 1}, )"
        R"({"name": "status", "type": "uint8", "size": 1}, {"name": "mode", "type": "uint8", "size": 1}, )"
        R"({"name": "pending_tmp", "type": "uint8", "size": 1}], "subsections": [{"vmsd_name": )"
        R"("pckbd/extended_state", "version": 0, "fields": [{"name": "migration_flags", "type": "uint32", "size": 4}, )"
        R"({"name": "obsrc", "type": "uint32", "size": 4}, {"name": "obdata", "type": "uint8", "size": 1}, )"
        R"({"name": "cbdata", "type": "uint8", "size": 1}]}]}, "size": 40}])");
}

TEST_CASE("Subsection.may_be_absent") {
  Isa object;
  CHECK(*left_over(isa_table, object, std::string(fields)) == 0);
}

TEST_CASE("Subsection.order_is_free") {
  Kbd object;
  const std::string other = "05 0c 70636b62642f7365636f6e64 00000000";
  CHECK(*left_over(two_table, object, std::string(fields) + other + subsection) == 0);
  CHECK(object.obsrc == 1);
}

TEST_CASE("Subsection.twice_is_refused") {
  Kbd object;
  CHECK(left_over(kbd_table, object, std::string(fields) + subsection + subsection).error().text() ==
        "subsection 'pckbd/extended_state' came twice");
}

TEST_CASE("Subsection.with_the_right_prefix_but_unknown_is_refused") {
  Isa object;
  const std::string unknown = "05 14 70636b62642f657874656e6465645f7374617466 00000000";
  CHECK(left_over(isa_table, object, std::string(fields) + unknown).error().text() ==
        "Failed to load pckbd:kbd: unknown subsection 'pckbd/extended_statf'");
}

TEST_CASE("Subsection.of_another_prefix_or_too_short_is_left_in_the_stream") {
  Isa object;
  CHECK(*left_over(isa_table, object, std::string(fields) + "05 07 70636b632f6162 00000000") == 13);
  // The owner's bare name is not a subsection of it.
  CHECK(*left_over(isa_table, object, std::string(fields) + "05 05 70636b6264 00000000") == 11);
  CHECK(*left_over(isa_table, object, std::string(fields) + "05") == 1);
  CHECK(*left_over(isa_table, object, std::string(fields) + "05 14 70636b62642f") == 8);
}

TEST_CASE("Subsection.a_plain_byte_5_behind_a_struct_is_no_subsection") {
  Isa object;
  CHECK(*left_over(followed_table, object, std::string(fields) + "05") == 0);
  CHECK(object.after == 5);
  CHECK(*left_over(followed_table, object, std::string(fields) + subsection + "05") == 0);
}

TEST_CASE("Subsection.version_above_its_own_is_refused") {
  Kbd object;
  std::string newer = subsection;
  newer.replace(newer.find("00000000"), 8, "00000001");
  CHECK(left_over(kbd_table, object, std::string(fields) + newer).error().text() ==
        "Failed to load subsection pckbd/extended_state: pckbd/extended_state: incoming version_id 1 is too new for "
        "local version_id 0");
}

TEST_CASE("Subsection.nested_ones_belong_to_the_subsection") {
  Everything object = full();
  const std::string text = saved_hex(everything_description, object);
  const auto outer = text.find(to_hex(as_bytes("everything/tail")));
  const auto inner = text.find(to_hex(as_bytes("everything/tail/deep")));
  REQUIRE(outer != std::string::npos);
  CHECK(inner > outer);
  // The deep one without its owner is unknown to the top level.
  Everything loaded;
  const std::string orphan = text.substr(0, outer - 4) + text.substr(inner - 4);
  CHECK(left_over(everything_description, loaded, orphan).error().text() ==
        "unknown subsection 'everything/tail/deep'");
}
