// SPDX-License-Identifier: Apache-2.0
//
// A device that uses every construct of a table at once: for round trips, for the walk by description, and for
// the fuzz target.
#pragma once

#include "vmstate/engine.hpp"

#include <array>
#include <cstdint>

namespace migrationd::vmstate::test {

struct Inner {
  std::uint16_t kind = 0;
  bool loud = false;
  std::uint32_t extra = 0;

  bool is_loud() const { return loud; }
  bool operator==(const Inner&) const = default;
};

inline constexpr Field inner_extra_fields[] = {field<&Inner::extra>("extra")};
inline constexpr auto inner_extra =
    describe<Inner>("inner/extra", 3).fields(inner_extra_fields).readable_from(2).needed_if<&Inner::is_loud>();
inline constexpr const Description* inner_parts[] = {&inner_extra};
inline constexpr Field inner_fields[] = {field<&Inner::kind>("kind"), field<&Inner::loud>("loud")};
inline constexpr auto inner_description = describe<Inner>("inner", 1).fields(inner_fields).subsections(inner_parts);

struct Pair {
  std::uint8_t tag = 0;
  std::int16_t value = 0;
  bool operator==(const Pair&) const = default;
};
inline constexpr Field pair_fields[] = {field<&Pair::tag>("tag"), field<&Pair::value>("value")};
inline constexpr auto pair_description = describe<Pair>("pair", 1).fields(pair_fields);

struct Everything {
  bool flag = false;
  std::int8_t i8 = 0;
  std::int16_t i16 = 0;
  std::int32_t i32 = 0;
  std::int64_t i64 = 0;
  std::uint8_t u8 = 0;
  std::uint16_t u16 = 0;
  std::uint32_t u32 = 0;
  std::uint64_t u64 = 0;
  std::array<std::uint16_t, 3> fixed{};
  std::uint8_t grid[2][3] = {};
  std::uint8_t small_count = 0;
  std::array<std::uint32_t, 8> small{};
  std::uint16_t pair_count = 0;
  std::array<Pair, 4> pairs{};
  std::uint32_t text_length = 0;
  std::array<char, 32> text{};
  std::array<std::byte, 5> raw{};
  Inner inner;
  std::array<Inner, 2> inners{};
  std::uint64_t added = 0;
  std::uint32_t narrow = 0;
  std::uint64_t wide = 0;
  std::int32_t tail_count = 0;
  std::array<std::uint64_t, 3> tail{};
  std::uint32_t deep = 0;

  bool is_wide() const { return flag; }
  bool is_narrow() const { return !flag; }
  bool has_tail() const { return tail_count != 0; }
  bool has_deep() const { return deep != 0; }
  bool operator==(const Everything&) const = default;
};

inline constexpr Field deep_fields[] = {field<&Everything::deep>("deep")};
inline constexpr auto deep_part =
    describe<Everything>("everything/tail/deep", 0).fields(deep_fields).needed_if<&Everything::has_deep>();
inline constexpr const Description* tail_parts[] = {&deep_part};
inline constexpr Field tail_fields[] = {
    field<&Everything::tail_count>("tail_count"),
    counted<&Everything::tail, &Everything::tail_count>("tail"),
};
inline constexpr auto tail_part = describe<Everything>("everything/tail", 2)
                                      .fields(tail_fields)
                                      .subsections(tail_parts)
                                      .readable_from(1)
                                      .needed_if<&Everything::has_tail>();
inline constexpr const Description* everything_parts[] = {&tail_part};

inline constexpr Field everything_fields[] = {
    field<&Everything::flag>("flag"),
    field<&Everything::i8>("i8"),
    field<&Everything::i16>("i16"),
    field<&Everything::i32>("i32"),
    field<&Everything::i64>("i64"),
    field<&Everything::u8>("u8"),
    field<&Everything::u16>("u16"),
    field<&Everything::u32>("u32"),
    field<&Everything::u64>("u64"),
    unused<Everything>(3),
    field<&Everything::fixed>("fixed"),
    field<&Everything::grid>("grid"),
    field<&Everything::small_count>("small_count"),
    counted<&Everything::small, &Everything::small_count>("small"),
    field<&Everything::pair_count>("pair_count"),
    counted_structures<&Everything::pairs, &Everything::pair_count>("pairs", pair_description),
    field<&Everything::text_length>("text_length"),
    counted_buffer<&Everything::text, &Everything::text_length>("text"),
    buffer<&Everything::raw>("raw"),
    structure<&Everything::inner>("inner", inner_description),
    structure<&Everything::inners>("inners", inner_description),
    // A zero byte: without it the next field's bytes could look like a subsection of the last struct, which the
    // format cannot tell apart.
    unused<Everything>(1),
    field<&Everything::added>("added").since(3),
    field<&Everything::narrow>("sized").when<&Everything::is_narrow>().shares_name(),
    field<&Everything::wide>("sized").when<&Everything::is_wide>().shares_name(),
    unused<Everything>(1),
};
inline constexpr auto everything_description =
    describe<Everything>("everything", 3).fields(everything_fields).subsections(everything_parts).readable_from(1);
static_assert(check(everything_description) == TableFault::none);

inline Everything full() {
  Everything out;
  out.flag = true;
  out.i8 = -65;
  out.i16 = -512;
  out.i32 = -70000;
  out.i64 = -12121212;
  out.u8 = 0x82;
  out.u16 = 0x200;
  out.u32 = 0x11170;
  out.u64 = 0xb8f47c;
  out.fixed = {0x42, 0x43, 0x44};
  out.grid[1][2] = 9;
  out.small_count = 3;
  out.small = {1, 2, 3};
  out.pair_count = 2;
  out.pairs[0] = {1, -1};
  out.pairs[1] = {2, -2};
  out.text_length = 4;
  out.text = {'t', 'e', 'x', 't'};
  out.raw = {std::byte{5}, std::byte{6}, std::byte{7}, std::byte{8}, std::byte{9}};
  out.inner = {7, true, 0x01020304};
  out.inners[0] = {8, false, 0};
  out.inners[1] = {9, true, 0x05060708};
  out.added = 11;
  out.wide = 0x100000000;
  out.tail_count = 2;
  out.tail = {21, 22};
  out.deep = 33;
  return out;
}

// --- bytes as text --------------------------------------------------------------------------------------
inline std::string to_hex(ByteView bytes) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out;
  for (const std::byte byte : bytes) {
    out.push_back(digits[std::to_integer<unsigned>(byte) >> 4]);
    out.push_back(digits[std::to_integer<unsigned>(byte) & 15]);
  }
  return out;
}

inline Bytes from_hex(std::string_view text) {
  const auto digit = [](char c) { return static_cast<unsigned>(c <= '9' ? c - '0' : c - 'a' + 10); };
  Bytes out;
  std::string packed;
  for (const char c : text) {
    if (c != ' ') packed.push_back(c);
  }
  for (std::size_t i = 0; i + 1 < packed.size(); i += 2) {
    out.push_back(static_cast<std::byte>(digit(packed[i]) * 16 + digit(packed[i + 1])));
  }
  return out;
}

template <class T>
std::string saved_hex(const DescriptionOf<T>& table, T object) {
  ByteWriter out;
  return save(table, object, out) ? to_hex(out.view()) : "failed";
}

}  // namespace migrationd::vmstate::test
