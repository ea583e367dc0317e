// SPDX-License-Identifier: Apache-2.0
//
// A device of everything that vmstate/shapes.hpp has: for round trips, for the walk by description, for the fuzz
// target. Pairs and Inner are those of everything.hpp.
#pragma once

#include "tests/unit/vmstate/everything.hpp"
#include "vmstate/shapes.hpp"

#include <optional>

namespace migrationd::vmstate::test {

struct Range {
  std::uint64_t low = 0;
  std::uint64_t high = 0;
  auto operator<=>(const Range&) const = default;
};
inline constexpr Field range_fields[] = {field<&Range::low>("low"), field<&Range::high>("high")};
inline constexpr auto range_description = describe<Range>("range", 0).fields(range_fields);

struct Mapping {
  std::uint64_t physical = 0;
  std::uint32_t flags = 0;
  bool operator==(const Mapping&) const = default;
};
inline constexpr Field mapping_fields[] = {field<&Mapping::physical>("physical"), field<&Mapping::flags>("flags")};
inline constexpr auto mapping_description = describe<Mapping>("mapping", 0).fields(mapping_fields);

struct Note {
  bool urgent = false;
  std::uint8_t text = 0;
  bool operator==(const Note&) const = default;
};
inline constexpr Field note_fields[] = {field<&Note::urgent>("urgent"), field<&Note::text>("text")};
inline constexpr auto note_description = describe<Note>("note", 0).fields(note_fields);

// A struct whose newest version is 3 and that is sent as 2 here.
struct Register {
  std::uint32_t value = 0;
  std::uint32_t mask = 0;    // since 2
  std::uint32_t shadow = 0;  // since 3
  bool operator==(const Register&) const = default;
};
inline constexpr Field register_fields[] = {field<&Register::value>("value"), field<&Register::mask>("mask").since(2),
                                            field<&Register::shadow>("shadow").since(3)};
inline constexpr auto register_description = describe<Register>("register", 3).fields(register_fields).readable_from(1);

struct Shapes {
  static constexpr std::uint32_t most_laps = 64;
  static constexpr std::uint32_t most_bits = 512;
  static constexpr std::uint32_t most_notes = 16;
  static constexpr std::uint32_t most_mappings = 8;

  std::uint32_t model = 7;  // both sides agree
  std::int32_t budget = 1000;
  double ratio = 0;
  Timer alarm;
  std::array<std::uint64_t, 2> fixed_map{};  // 70 bits
  std::int32_t map_bits = 0;
  std::vector<std::uint64_t> map;
  std::unique_ptr<std::uint32_t> boxed;
  std::unique_ptr<Pair> boxed_pair;
  Pair outer;  // behind `outer_pointer`
  Pair* outer_pointer = &outer;
  std::array<std::uint16_t, 3> outer_array{};
  std::uint16_t* outer_array_pointer = outer_array.data();
  std::uint8_t outer_count = 0;  // of outer_array's
  std::uint16_t lap_count = 0;
  std::vector<std::uint32_t> laps;
  std::uint8_t pair_count = 0;
  std::unique_ptr<Pair[]> pairs;
  std::uint32_t text_length = 0;
  std::vector<std::byte> text;
  std::uint8_t triple_count = 0;  // three bytes each
  std::array<std::uint8_t, 12> triples{};
  std::array<std::uint16_t, 6> window{};  // elements 2 and 3
  std::array<std::byte, 8> raw{};         // bytes [1, 5)
  std::array<std::uint32_t, 4> slots_of{};
  std::array<std::uint32_t*, 4> slots{&slots_of[0], nullptr, &slots_of[2], &slots_of[3]};
  std::array<std::unique_ptr<Pair>, 3> pair_slots{};
  Register mark;
  std::uint16_t stored = 0;  // sent as its halves
  std::list<Note> notes;
  std::deque<Note> log;
  std::map<Range, Mapping> mappings;
  std::map<std::uint64_t, Pair> by_number;
  std::uint32_t gone = 0;  // until version 1

  Shapes() = default;
  Shapes(const Shapes&) = delete;
  Shapes& operator=(const Shapes&) = delete;
  bool budget_is_sane() const { return budget >= 0; }
};

// What is sent for `stored`.
struct Halves {
  explicit Halves(Shapes& of) : owner(of) {}
  Shapes& owner;
  std::uint8_t high = 0;
  std::uint8_t low = 0;
  void split() {
    high = static_cast<std::uint8_t>(owner.stored >> 8);
    low = static_cast<std::uint8_t>(owner.stored & 0xff);
  }
  void join() { owner.stored = static_cast<std::uint16_t>(high << 8 | low); }
};
inline constexpr Field halves_fields[] = {field<&Halves::high>("high"), field<&Halves::low>("low")};
inline constexpr auto halves_description =
    describe<Halves>("halves", 0).fields(halves_fields).pre_save<&Halves::split>().post_load<&Halves::join>();
inline constexpr auto plain_pair = describe<Pair>("pair", 0).fields(pair_fields);

inline constexpr Field shapes_fields[] = {
    equal<&Shapes::model>("model", "start both sides with the same model"),
    at_most_now<&Shapes::budget>("budget"),
    validate<Shapes, &Shapes::budget_is_sane>("budget is sane"),
    field<&Shapes::ratio>("ratio"),
    field<&Shapes::alarm>("alarm"),
    bitmap<&Shapes::fixed_map>("fixed_map", 70),
    field<&Shapes::map_bits>("map_bits"),
    allocated_bitmap<&Shapes::map, &Shapes::map_bits>("map", Shapes::most_bits),
    pointer<&Shapes::boxed>("boxed"),
    pointer<&Shapes::boxed_pair>("boxed_pair", pair_description),
    pointer<&Shapes::outer_pointer>("outer", pair_description),
    pointed<&Shapes::outer_array_pointer>("outer_array", 3),
    field<&Shapes::outer_count>("outer_count"),
    pointed_counted<&Shapes::outer_array_pointer, &Shapes::outer_count>("outer_part", 3),
    field<&Shapes::lap_count>("lap_count"),
    allocated<&Shapes::laps, &Shapes::lap_count>("laps", Shapes::most_laps),
    field<&Shapes::pair_count>("pair_count"),
    allocated<&Shapes::pairs, &Shapes::pair_count>("pairs", Shapes::most_laps, pair_description),
    field<&Shapes::text_length>("text_length"),
    allocated_buffer<&Shapes::text, &Shapes::text_length>("text", Shapes::most_laps),
    field<&Shapes::triple_count>("triple_count"),
    counted<&Shapes::triples, &Shapes::triple_count>("triples").times(3),
    part<&Shapes::window, 2, 2>("window"),
    partial_buffer<&Shapes::raw, 1, 5>("raw"),
    pointers<&Shapes::slots>("slots"),
    pointers<&Shapes::pair_slots>("pair_slots", pair_description),
    versioned_structure<&Shapes::mark>("mark", register_description, 2),
    view<Shapes>("stored", halves_description),
    queue<&Shapes::notes>("notes", note_description, Shapes::most_notes),
    list<&Shapes::log>("log", note_description, Shapes::most_notes),
    tree<&Shapes::mappings>("mappings", range_description, mapping_description, Shapes::most_mappings),
    tree<&Shapes::by_number>("by_number", plain_pair, Shapes::most_mappings),
    field<&Shapes::gone>("gone").until(1),
};
inline constexpr auto shapes_description = describe<Shapes>("shapes", 2).fields(shapes_fields).readable_from(1);
static_assert(check(shapes_description) == TableFault::none);

// Both sides of a migration have the same slots.
inline void fill(Shapes& out) {
  out.budget = 900;
  out.ratio = 1.0;
  out.alarm.expiry_ns = 123456789;
  out.fixed_map = {1, 0x20};
  out.map_bits = 130;
  out.map = {3, 5, 2};
  out.boxed = std::make_unique<std::uint32_t>(0x01020304);
  out.boxed_pair = std::make_unique<Pair>(Pair{1, -1});
  out.outer = {2, -2};
  out.outer_array = {11, 12, 13};
  out.outer_count = 2;
  out.lap_count = 3;
  out.laps = {21, 22, 23};
  out.pair_count = 2;
  out.pairs = std::make_unique<Pair[]>(2);
  out.pairs[1] = {9, -9};
  out.text_length = 2;
  out.text = {std::byte{'h'}, std::byte{'i'}};
  out.triple_count = 2;
  out.triples = {1, 2, 3, 4, 5, 6};
  out.window = {0, 0, 31, 32, 0, 0};
  out.raw[1] = std::byte{0xaa};
  out.raw[4] = std::byte{0xbb};
  out.slots_of = {41, 0, 43, 44};
  out.pair_slots[1] = std::make_unique<Pair>(Pair{3, -3});
  out.mark = {51, 52, 0};
  out.stored = 0x1234;
  out.notes = {{true, 0x82}, {false, 0x41}};
  out.log = {{true, 1}};
  out.mappings = {{{0x1000, 0x1fff}, {0xa000, 1}}, {{0x3000, 0x3fff}, {0xb000, 2}}};
  out.by_number = {{5, {7, -7}}};
}

}  // namespace migrationd::vmstate::test
