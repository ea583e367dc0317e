// SPDX-License-Identifier: Apache-2.0
//
// The compile-time proof of tables. Every line here is decided by the compiler; the test cases only give the
// facts a name in the report.
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/every_shape.hpp"

using namespace migrationd::vmstate;
using migrationd::vmstate::test::Shapes;

namespace {

enum class Colour : std::uint8_t { red };
struct Lamp {
  std::uint32_t power = 0;
  std::uint32_t count = 0;
  std::array<std::uint8_t, 4> rows{};
  Colour colour = Colour::red;
};
struct Other {
  std::uint32_t power = 0;
};

template <class... Fields>
constexpr std::array<Field, sizeof...(Fields)> table(Fields... fields) {
  return {static_cast<const Field&>(fields)...};
}

constexpr auto twice = table(field<&Lamp::power>("power"), field<&Lamp::count>("power"));
constexpr auto half_shared = table(field<&Lamp::power>("power"), field<&Lamp::count>("power").shares_name());
constexpr auto shared = table(field<&Lamp::power>("power").shares_name(), field<&Lamp::count>("power").shares_name());
constexpr auto newer = table(field<&Lamp::power>("power").since(3));
constexpr auto foreign = table(field<&Other::power>("power"));
constexpr auto no_operations = table(field<&Lamp::colour>("colour"));
constexpr auto nameless = table(field<&Lamp::power>(""));
constexpr auto late_count = table(counted<&Lamp::rows, &Lamp::count>("rows"), field<&Lamp::count>("count"));
constexpr auto early_count = table(field<&Lamp::count>("count"), counted<&Lamp::rows, &Lamp::count>("rows"));
constexpr auto fixed_count = table(counted<&Lamp::rows, &Lamp::count>("rows"));
constexpr auto two_gaps = table(unused<Lamp>(1), unused<Lamp>(2));

constexpr auto lamp = describe<Lamp>("lamp", 2);
constexpr auto prefixed = describe<Lamp>("lamp/more", 1);
constexpr auto unprefixed = describe<Lamp>("more", 1);
constexpr auto same_name = describe<Lamp>("lamp", 1);
constexpr auto foreign_part = describe<Other>("lamp/more", 1);
constexpr auto early_part = describe<Lamp>("lamp/more", 1).sent_early();
constexpr auto broken_part = describe<Lamp>("lamp/more", 1).fields(twice);
constexpr const Description* ok_parts[] = {&prefixed};
constexpr const Description* twice_parts[] = {&prefixed, &prefixed};
constexpr const Description* unprefixed_parts[] = {&unprefixed};
constexpr const Description* same_parts[] = {&same_name};
constexpr const Description* foreign_parts[] = {&foreign_part};
constexpr const Description* early_parts[] = {&early_part};
constexpr const Description* broken_parts[] = {&broken_part};

struct Holder {
  Lamp lamp;
};
constexpr auto broken_lamp = describe<Lamp>("lamp", 2).fields(newer);
constexpr auto nested_broken = table(structure<&Holder::lamp>("lamp", broken_lamp));

// What ends in front of a subsection, and whether it would take it for its own.
struct Room {
  Lamp lamp;
  std::uint32_t light = 0;
  bool is_lit() const { return light != 0; }
};
constexpr auto light = table(field<&Room::light>("light"));
constexpr auto named_as_room = describe<Lamp>("room", 1).fields(two_gaps);
constexpr auto struct_last = table(field<&Room::light>("light"), structure<&Room::lamp>("lamp", named_as_room));
constexpr auto struct_first = table(structure<&Room::lamp>("lamp", named_as_room), field<&Room::light>("light"));
constexpr auto struct_often_last =
    table(structure<&Room::lamp>("lamp", named_as_room), field<&Room::light>("light").when<&Room::is_lit>());
struct Nothing {};
constexpr auto nothing = describe<Nothing>("nothing", 1);
struct Hall {
  Lamp lamp;
  Nothing nothing;
};
constexpr auto nothing_last =
    table(structure<&Hall::lamp>("lamp", named_as_room), structure<&Hall::nothing>("nothing", nothing));
constexpr auto hall_part = describe<Hall>("room/part", 1);
constexpr const Description* hall_parts[] = {&hall_part};
constexpr auto dark = describe<Room>("room/dark", 1).fields(light);
constexpr auto darker = describe<Room>("room/darker", 1).fields(light);
constexpr const Description* one_dark[] = {&dark};
constexpr const Description* dark_first[] = {&dark, &darker};
constexpr const Description* darker_first[] = {&darker, &dark};
constexpr auto room = describe<Room>("room", 1).fields(light);

// --- shapes ----------------------------------------------------------------------------------------------
struct Child {
  std::uint32_t old = 0;
  std::uint32_t added = 0;
};
constexpr auto child_fields = table(field<&Child::old>("old"), field<&Child::added>("added").since(2));
constexpr auto child = describe<Child>("child", 2).fields(child_fields);
constexpr auto child_of_2 = child.readable_from(2);
struct Shelf {
  std::uint32_t count = 0;
  std::vector<std::uint64_t> words;
  std::list<Child> list;
  Child one;
  bool fine() const { return true; }
};
constexpr auto unread = table(queue<&Shelf::list>("list", child, 4));
constexpr auto read_as_2 = table(queue<&Shelf::list>("list", child, 4).since(2));
constexpr auto read_as_1 = table(queue<&Shelf::list>("list", child_of_2, 4).since(1));
constexpr auto too_much = table(allocated<&Shelf::words, &Shelf::count>("words", 0x10000000));
constexpr auto no_bound = table(allocated<&Shelf::words, &Shelf::count>("words", 0));
constexpr auto no_factor = table(allocated<&Shelf::words, &Shelf::count>("words", 8).times(0));
constexpr auto struct_3 = table(versioned_structure<&Shelf::one>("one", child, 3));
constexpr auto over = table(field<&Shelf::count>("count").since(2).until(1));
constexpr auto long_gone = table(field<&Shelf::count>("count").until(1));
constexpr auto validated = table(validate<Shelf, &Shelf::fine>("fine"));
constexpr auto many_bits = table(bitmap<&Shapes::fixed_map>("map", 129));
constexpr auto shelf = describe<Shelf>("shelf", 3);
static_assert(check(shelf.fields(unread)) == TableFault::element_field_not_read);
static_assert(check(shelf.fields(read_as_2)) == TableFault::none);
static_assert(check(shelf.fields(read_as_1)) == TableFault::element_version_outside_child);
static_assert(check(shelf.fields(too_much)) == TableFault::bound_too_large);
static_assert(check(shelf.fields(no_bound)) == TableFault::field_without_elements);
static_assert(check(shelf.fields(no_factor)) == TableFault::field_without_elements);
static_assert(check(shelf.fields(struct_3)) == TableFault::struct_version_outside_child);
static_assert(check(shelf.fields(over)) == TableFault::field_never_present);
static_assert(check(shelf.fields(long_gone)) == TableFault::none);
static_assert(check(shelf.fields(long_gone).readable_from(2)) == TableFault::field_never_present);
static_assert(check(shelf.fields(validated)) == TableFault::none);
static_assert(check(describe<Shapes>("shapes", 1).fields(many_bits)) == TableFault::field_without_elements);

// 128 characters: one more than a reader must take.
constexpr std::string_view long_name =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
constexpr auto long_field = table(field<&Lamp::power>(long_name));

static_assert(check(lamp.fields(twice)) == TableFault::field_name_twice);
static_assert(check(lamp.fields(half_shared)) == TableFault::field_name_twice);
static_assert(check(lamp.fields(shared)) == TableFault::none);
static_assert(check(lamp.fields(newer)) == TableFault::field_newer_than_description);
static_assert(check(lamp.fields(foreign)) == TableFault::field_of_another_struct);
static_assert(check(lamp.fields(no_operations)) == TableFault::type_without_operations);
static_assert(check(lamp.fields(nameless)) == TableFault::field_without_name);
static_assert(check(lamp.fields(long_field)) == TableFault::name_too_long);
static_assert(check(lamp.fields(late_count)) == TableFault::count_after_its_array);
static_assert(check(lamp.fields(early_count)) == TableFault::none);
static_assert(check(lamp.fields(fixed_count)) == TableFault::none);
static_assert(check(lamp.fields(two_gaps)) == TableFault::none);
static_assert(check(describe<Lamp>("", 1)) == TableFault::description_without_name);
static_assert(check(describe<Lamp>(long_name, 1)) == TableFault::name_too_long);
static_assert(check(lamp.readable_from(3)) == TableFault::minimum_above_version);
static_assert(check(describe<Lamp>("lamp", 0x80000000U)) == TableFault::version_negative);
static_assert(check(lamp.subsections(ok_parts)) == TableFault::none);
static_assert(check(lamp.subsections(twice_parts)) == TableFault::subsection_twice);
static_assert(check(lamp.subsections(unprefixed_parts)) == TableFault::subsection_name_not_prefixed);
static_assert(check(lamp.subsections(same_parts)) == TableFault::subsection_name_not_prefixed);
static_assert(check(lamp.subsections(foreign_parts)) == TableFault::subsection_of_another_struct);
static_assert(check(lamp.subsections(early_parts)) == TableFault::subsection_above_top_level);
static_assert(check(lamp.subsections(broken_parts)) == TableFault::field_name_twice);
static_assert(check(room.subsections(darker_first)) == TableFault::none);
static_assert(check(room.subsections(dark_first)) == TableFault::subsection_taken_by_another);
static_assert(check(room.fields(struct_first).subsections(one_dark)) == TableFault::none);
static_assert(check(room.fields(struct_last).subsections(one_dark)) == TableFault::subsection_taken_by_another);
static_assert(check(room.fields(struct_often_last).subsections(one_dark)) == TableFault::subsection_taken_by_another);
static_assert(check(describe<Hall>("room", 1).fields(nothing_last).subsections(hall_parts)) ==
              TableFault::subsection_taken_by_another);
static_assert(check(describe<Holder>("holder", 1).fields(nested_broken)) == TableFault::field_newer_than_description);

}  // namespace

TEST_CASE("Table.rows_keep_shape_and_type") {
  constexpr const Field& rows = early_count[1];
  STATIC_REQUIRE(rows.capacity == 4);
  STATIC_REQUIRE(rows.stride == 1);
  STATIC_REQUIRE(rows.codec == &codec::u8);
  constexpr const Field& grid = test::everything_fields[11];
  STATIC_REQUIRE(grid.capacity == 6);
  STATIC_REQUIRE(grid.codec == &codec::u8);
}

TEST_CASE("Table.addresses_come_from_the_member_pointer") {
  Lamp object;
  CHECK(early_count[0].address(&object) == &object.count);
  CHECK(early_count[1].address(&object) == object.rows.data());
  object.count = 3;
  CHECK(early_count[1].count(&object) == 3);
}
