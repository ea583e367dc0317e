// SPDX-License-Identifier: Apache-2.0
//
// The shapes beyond plain members: the published vectors, round trips, bounds, and what each refuses.
#include "tests/unit/catch.hpp"
#include "tests/unit/vmstate/every_shape.hpp"

using namespace migrationd;
using namespace migrationd::vmstate;
using namespace migrationd::vmstate::test;

namespace {

template <class T>
Result<void> load_text(const DescriptionOf<T>& table, T& object, std::uint32_t version, std::string_view text) {
  const Bytes bytes = from_hex(text);
  ByteReader in(bytes);
  MD_CHECK(load(table, object, version, in));
  if (!in.at_end()) return wire_error("bytes left over");
  return {};
}

template <class T>
std::string hex_of(const DescriptionOf<T>& table, T& object) {
  ByteWriter out;
  const auto saved = save(table, object, out);
  return saved ? to_hex(out.view()) : saved.error().text();
}

struct Slots {
  std::array<std::int32_t, 4> of{0, 1, 2, 3};
  std::array<std::int32_t*, 4> slots{&of[0], nullptr, &of[2], &of[3]};
};
constexpr Field slots_fields[] = {pointers<&Slots::slots>("slots")};
constexpr auto slots_table = describe<Slots>("slots", 1).fields(slots_fields);

struct Queue {
  std::int16_t before = -512;
  std::list<Note> notes{{true, 130}, {false, 65}};
  std::int32_t after = 70000;
};
constexpr Field queue_fields[] = {field<&Queue::before>("before"), queue<&Queue::notes>("notes", note_description, 4),
                                  field<&Queue::after>("after")};
constexpr auto queue_table = describe<Queue>("queue", 1).fields(queue_fields);

struct Domain {
  std::uint32_t id = 6;
  std::map<Range, Mapping> mappings{{{0x1000, 0x1fff}, {0xa000, 1}}};
};
constexpr Field domain_fields[] = {field<&Domain::id>("id"),
                                   tree<&Domain::mappings>("mappings", range_description, mapping_description, 4)};
constexpr auto domain_table = describe<Domain>("domain", 1).fields(domain_fields);

struct Value {
  std::uint32_t value = 7;
};
constexpr Field value_fields[] = {field<&Value::value>("value")};
constexpr auto value_table = describe<Value>("value", 0).fields(value_fields);
struct Numbers {
  std::map<std::uint64_t, Value> values{{5, {7}}};
};
constexpr Field numbers_fields[] = {tree<&Numbers::values>("values", value_table, 4)};
constexpr auto numbers_table = describe<Numbers>("numbers", 1).fields(numbers_fields);

struct Odd {
  double one = 1.0;
  Timer idle;
  std::array<std::uint64_t, 2> map{1, 0x20 | std::uint64_t{1} << 63};  // bit 127 is past the end
};
constexpr Field odd_fields[] = {field<&Odd::one>("one"), field<&Odd::idle>("idle"), bitmap<&Odd::map>("map", 70)};
constexpr auto odd_table = describe<Odd>("odd", 1).fields(odd_fields);

struct Agreed {
  std::uint8_t a = 0xab;
  std::uint16_t b = 0x100;
  std::int32_t c = -1;
  std::uint64_t d = 5;
};
constexpr Field agreed_fields[] = {equal<&Agreed::a>("a"), equal<&Agreed::b>("b", "set both to 256"),
                                   equal<&Agreed::c>("c"), equal<&Agreed::d>("d")};
constexpr auto agreed_table = describe<Agreed>("agreed", 1).fields(agreed_fields);

struct Budget {
  std::int32_t left = 10;
  bool allowed = true;
};
constexpr Field budget_fields[] = {at_most_now<&Budget::left>("left"), field<&Budget::allowed>("allowed"),
                                   validate<Budget, &Budget::allowed>("is allowed")};
constexpr auto budget_table = describe<Budget>("budget", 1).fields(budget_fields);

struct Vectors {
  std::uint32_t count = 0;
  std::vector<std::uint16_t> values;
};
constexpr Field made_fields[] = {field<&Vectors::count>("count"), allocated<&Vectors::values, &Vectors::count>("v", 4)};
constexpr auto made_table = describe<Vectors>("made", 1).fields(made_fields);
constexpr Field there_fields[] = {field<&Vectors::count>("count"),
                                  pointed_counted<&Vectors::values, &Vectors::count>("v", 4)};
constexpr auto there_table = describe<Vectors>("there", 1).fields(there_fields);

}  // namespace

TEST_CASE("Shapes.write_the_published_vectors") {
  Slots slots;
  CHECK(hex_of(slots_table, slots) ==
        "00000000"
        "30"
        "00000002"
        "00000003");
  Queue queue;
  CHECK(hex_of(queue_table, queue) ==
        "fe00"
        "010182"
        "010041"
        "00"
        "00011170");
  Domain domain;
  CHECK(hex_of(domain_table, domain) ==
        "00000006"
        "00000001"
        "01"
        "0000000000001000"
        "0000000000001fff"
        "000000000000a000"
        "00000001"
        "00");
  Numbers numbers;
  CHECK(hex_of(numbers_table, numbers) ==
        "00000001"
        "01"
        "0000000000000005"
        "00000007"
        "00");
  Odd odd;
  CHECK(hex_of(odd_table, odd) ==
        "3ff0000000000000"
        "ffffffffffffffff"
        "0000000000000001"
        "0000000000000020");
}

TEST_CASE("Shapes.everything_survives_the_round_trip") {
  Shapes full;
  fill(full);
  Shapes empty;
  empty.boxed = std::make_unique<std::uint32_t>(0);
  empty.boxed_pair = std::make_unique<Pair>();
  for (Shapes* source : {&full, &empty}) {
    const std::string wire = hex_of(shapes_description, *source);
    Shapes loaded;
    for (std::size_t i = 0; i < loaded.pair_slots.size(); ++i) {
      if (source->pair_slots[i]) loaded.pair_slots[i] = std::make_unique<Pair>();
    }
    loaded.notes = {{true, 1}};  // is emptied first
    INFO(wire);
    const auto result = load_text(shapes_description, loaded, 2, wire);
    INFO((result.has_error() ? result.error().text() : std::string()));
    REQUIRE(result.has_value());
    CHECK(hex_of(shapes_description, loaded) == wire);
    CHECK(loaded.laps == source->laps);
    CHECK(loaded.mappings == source->mappings);
    CHECK(loaded.notes == source->notes);
    CHECK(loaded.stored == source->stored);
    CHECK(loaded.mark == source->mark);
  }
}

TEST_CASE("Shapes.a_cut_at_every_byte_fails") {
  Shapes source;
  fill(source);
  const std::string wire = hex_of(shapes_description, source);
  for (std::size_t length = 0; length < wire.size(); length += 2) {
    Shapes loaded;
    loaded.pair_slots[1] = std::make_unique<Pair>();
    REQUIRE_FALSE(load_text(shapes_description, loaded, 2, wire.substr(0, length)).has_value());
  }
}

TEST_CASE("Shapes.a_field_ends_with_the_last_version_that_has_it") {
  Shapes source;
  fill(source);
  const std::string newest = hex_of(shapes_description, source);
  ByteWriter out;
  source.gone = 0xdeadbeef;
  REQUIRE(save_state_as(shapes_description, &source, 1, out, nullptr).has_value());
  CHECK(to_hex(out.view()) == newest + "deadbeef");
  Shapes loaded;
  loaded.pair_slots[1] = std::make_unique<Pair>();
  REQUIRE(load_text(shapes_description, loaded, 1, newest + "deadbeef").has_value());
  CHECK(loaded.gone == 0xdeadbeef);
}

TEST_CASE("Shapes.equal_values_are_compared_and_not_stored") {
  Agreed object;
  CHECK(hex_of(agreed_table, object) == "ab0100ffffffff0000000000000005");
  CHECK(load_text(agreed_table, object, 1, "ab 0100 ffffffff 0000000000000005").has_value());
  CHECK(load_text(agreed_table, object, 1, "0c").error().text() == "Failed to load agreed:a: ab != c");
  CHECK(load_text(agreed_table, object, 1, "ab 0101").error().text() ==
        "Failed to load agreed:b: 100 != 101; set both to 256");
  CHECK(load_text(agreed_table, object, 1, "ab 0100 fffffffe").error().text() ==
        "Failed to load agreed:c: ffffffff != fffffffe");
  // A stream that ends is no difference of values.
  CHECK(load_text(agreed_table, object, 1, "ab 01").error().text().find("set both") == std::string::npos);
  CHECK(object.b == 0x100);
}

TEST_CASE("Shapes.int32_le_takes_zero_to_what_is_there") {
  Budget object;
  REQUIRE(load_text(budget_table, object, 1, "00000009 01").has_value());
  CHECK(object.left == 9);
  CHECK(load_text(budget_table, object, 1, "0000000a").error().text() ==
        "Failed to load budget:left: Invalid value 10 expecting positive value <= 9");
  CHECK(load_text(budget_table, object, 1, "ffffffff").error().text() ==
        "Failed to load budget:left: Invalid value -1 expecting positive value <= 9");
}

TEST_CASE("Shapes.a_validation_ends_both_directions") {
  Budget object;
  const auto refused = load_text(budget_table, object, 1, "00000009 00");
  CHECK(refused.error().text() == "Input validation failed: budget/is allowed");
  CHECK(refused.error().kind() == ErrorKind::wire);
  CHECK(hex_of(budget_table, object) == "Output state validation failed: budget/is allowed");
}

TEST_CASE("Shapes.null_slots_are_known_by_the_reader") {
  Slots object;
  CHECK(load_text(slots_table, object, 1, "00000005 30 00000006 00000007").has_value());
  CHECK(object.of == std::array<std::int32_t, 4>{5, 1, 6, 7});
  CHECK(load_text(slots_table, object, 1, "00000005 31").error().text() ==
        "Failed to load slots:slots: element 1: vmstate: get_nullptr expected VMS_NULLPTR_MARKER");
}

TEST_CASE("Shapes.the_loader_makes_no_more_than_the_bound") {
  Vectors object;
  CHECK(load_text(made_table, object, 1, "00000005").error().text() ==
        "Failed to load made:v: count 5 is outside 0..4");
  CHECK(load_text(made_table, object, 1, "ffffffff").error().text() ==
        "Failed to load made:v: count 4294967295 is outside 0..4");
  CHECK(object.values.empty());
  REQUIRE(load_text(made_table, object, 1, "00000002 0007 0008").has_value());
  CHECK(object.values == std::vector<std::uint16_t>{7, 8});
  REQUIRE(load_text(made_table, object, 1, "00000000").has_value());
  CHECK(object.values.empty());
  object.count = 1;
  CHECK(hex_of(made_table, object) == "Save of field made/v failed: count 1 is outside 0..0");
}

TEST_CASE("Shapes.a_null_pointer_is_an_error_both_ways") {
  Shapes object;
  fill(object);
  object.outer_pointer = nullptr;
  CHECK(hex_of(shapes_description, object) == "Save of field shapes/outer failed: the pointer is null");
  Shapes good;
  fill(good);
  const auto refused = load_text(shapes_description, object, 2, hex_of(shapes_description, good));
  CHECK(refused.error().text() == "Failed to load shapes:outer: the pointer is null");
  CHECK(refused.error().kind() == ErrorKind::machine);
}

TEST_CASE("Shapes.storage_that_is_there_is_not_outgrown") {
  Vectors object;
  object.values = {1, 2};
  CHECK(load_text(there_table, object, 1, "00000003 0001 0002 0003").error().text() ==
        "Failed to load there:v: count 3 is outside 0..2");
  REQUIRE(load_text(there_table, object, 1, "00000001 0009").has_value());
  CHECK(object.values == std::vector<std::uint16_t>{9, 2});
}

TEST_CASE("Shapes.lists_and_trees_stop_at_their_bound") {
  Queue queue;
  CHECK(load_text(queue_table, queue, 1, "0000 010001 010001 010001 010001 01").error().text() ==
        "Failed to load queue:notes: more than 4 elements");
  queue.notes.resize(5);
  CHECK(hex_of(queue_table, queue) == "Save of field queue/notes failed: 5 elements, more than 4");
  Numbers numbers;
  CHECK(load_text(numbers_table, numbers, 1, "00000005").error().text() ==
        "Failed to load numbers:values: 5 nodes, more than 4");
}

TEST_CASE("Shapes.a_tree_has_as_many_nodes_as_it_says") {
  Numbers numbers;
  const std::string node = "01 0000000000000005 00000007 ";
  const std::string other = "01 0000000000000006 00000007 ";
  const std::string inconsistent = "Failed to load numbers:values: values inconsistent stream when loading the gtree";
  CHECK(load_text(numbers_table, numbers, 1, "00000002" + node + "00").error().text() == inconsistent);
  CHECK(load_text(numbers_table, numbers, 1, "00000001" + node + other + "00").error().text() == inconsistent);
  CHECK(load_text(numbers_table, numbers, 1, "00000002" + node + node + "00").error().text() ==
        "Failed to load numbers:values: node 1: the same key twice");
  CHECK(load_text(numbers_table, numbers, 1, "00000002" + other + node + "00").has_value());
}

TEST_CASE("Shapes.every_entry_of_the_description_accounts_for_its_bytes") {
  Shapes source;
  fill(source);
  ByteWriter out;
  Layout layout;
  REQUIRE(save(shapes_description, source, out, &layout).has_value());
  std::uint64_t sum = 0;
  for (const FieldLayout& entry : layout.fields) sum += entry.size * std::max<std::uint32_t>(1, entry.array_length);
  CHECK(sum == out.size());
  const std::string json = json_members(layout);
  CHECK(json.find(R"({"name": "slots", "type": "uint32", "size": 4}, {"name": "slots", "type": "nullptr", "size": 1}, )"
                  R"({"name": "slots", "array_len": 2, "type": "uint32", "size": 4})") != std::string::npos);
  CHECK(json.find(R"({"name": "mark", "type": "vstruct", "vmsd_name": "register", "version": 2, "fields": [)"
                  R"({"name": "value", "type": "uint32", "size": 4}, {"name": "mask", "type": "uint32", "size": 4}], )"
                  R"("size": 8})") != std::string::npos);
  CHECK(json.find(R"({"name": "stored", "type": "tmp", "vmsd_name": "halves", "version": 0, "fields": [)"
                  R"({"name": "high", "type": "uint8", "size": 1}, {"name": "low", "type": "uint8", "size": 1}], )"
                  R"("size": 2})") != std::string::npos);
  CHECK(json.find(R"({"name": "notes", "type": "qtailq", "size": 7})") != std::string::npos);
  CHECK(json.find(R"({"name": "log", "type": "qlist", "size": 4})") != std::string::npos);
  CHECK(json.find(R"({"name": "fixed_map", "type": "bitmap", "size": 16})") != std::string::npos);
  CHECK(json.find(R"({"name": "model", "type": "uint32 equal", "size": 4})") != std::string::npos);
  CHECK(json.find("budget is sane") == std::string::npos);
}
