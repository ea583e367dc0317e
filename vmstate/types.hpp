// SPDX-License-Identifier: Apache-2.0
//
// Codec: how one element of a field is written and read (docs/formats/vmstate.md, "Element types").
//
// A codec is three facts and two functions; it knows neither names nor versions nor shapes. The engine hands it
// the address of one element in the state struct and, for the types whose length is not fixed, the number of
// bytes. All integers are big-endian, without padding or tag.
//
// Enumerations have no codec on purpose: a value from the wire would have to be proved first. Describe them as
// an integer and convert in post_load.
//
// Thread: stateless.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <type_traits>

namespace migrationd::vmstate {

struct Codec {
  std::string_view name;   // type name in the JSON description
  std::size_t wire_bytes;  // of one element; 0: the field (or the value itself) says how many
  void (*save)(const void* from, std::size_t bytes, ByteWriter& out);
  Result<void> (*load)(void* to, std::size_t bytes, ByteReader& in);
};

// The name of a capability in the configuration section: u8 length and text on the wire.
struct CapabilityName {
  std::uint8_t length = 0;
  std::array<char, 255> text{};

  std::string_view view() const noexcept { return {text.data(), length}; }
  // Longer than 255 is a programming error.
  static CapabilityName of(std::string_view name);
};

// A timer: its expiry in nanoseconds of its clock. Arming the real one is post_load's work.
struct Timer {
  static constexpr std::uint64_t not_armed = ~std::uint64_t{0};
  std::uint64_t expiry_ns = not_armed;

  bool armed() const noexcept { return expiry_ns != not_armed; }
  bool operator==(const Timer&) const = default;
};

namespace codec {
extern const Codec boolean, i8, i16, i32, i64, u8, u16, u32, u64, buffer, unused, capability;
// A double by its bits ("CPU_Double_U"); a Timer or its u64; a map of `bytes` bits in u64 words of memory, whose bits
// past the end are not sent and come back as zero.
extern const Codec binary64, timer, bitmap;
// Values both sides must agree about: loading compares and stores nothing. The 64-bit one is unsigned.
extern const Codec u8_equal, u16_equal, i32_equal, u32_equal, u64_equal;
// Loading takes 0 up to what the object holds now.
extern const Codec i32_le;
}  // namespace codec

// The byte that stands for a null slot of an array of pointers, and its name in the description.
inline constexpr std::uint8_t null_marker = 0x30;
inline constexpr std::string_view null_type = "nullptr";

constexpr std::size_t bitmap_words(std::size_t bits) { return bits / 64 + (bits % 64 != 0 ? 1 : 0); }

// The codec of a member's element type; null where there is none, which check() refuses by has_codec: with
// -fsanitize=undefined GCC 12 does not compare a variable's address with null while compiling.
template <class T>
inline constexpr const Codec* codec_of = nullptr;
template <>
inline constexpr const Codec* codec_of<bool> = &codec::boolean;
template <>
inline constexpr const Codec* codec_of<std::int8_t> = &codec::i8;
template <>
inline constexpr const Codec* codec_of<std::int16_t> = &codec::i16;
template <>
inline constexpr const Codec* codec_of<std::int32_t> = &codec::i32;
template <>
inline constexpr const Codec* codec_of<std::int64_t> = &codec::i64;
template <>
inline constexpr const Codec* codec_of<std::uint8_t> = &codec::u8;
template <>
inline constexpr const Codec* codec_of<std::uint16_t> = &codec::u16;
template <>
inline constexpr const Codec* codec_of<std::uint32_t> = &codec::u32;
template <>
inline constexpr const Codec* codec_of<std::uint64_t> = &codec::u64;
template <>
inline constexpr const Codec* codec_of<CapabilityName> = &codec::capability;
template <>
inline constexpr const Codec* codec_of<double> = &codec::binary64;
template <>
inline constexpr const Codec* codec_of<Timer> = &codec::timer;

template <class T>
inline constexpr bool has_codec =
    std::is_same_v<T, bool> || std::is_same_v<T, CapabilityName> || std::is_same_v<T, double> ||
    std::is_same_v<T, Timer> || std::is_same_v<T, std::int8_t> || std::is_same_v<T, std::int16_t> ||
    std::is_same_v<T, std::int32_t> || std::is_same_v<T, std::int64_t> || std::is_same_v<T, std::uint8_t> ||
    std::is_same_v<T, std::uint16_t> || std::is_same_v<T, std::uint32_t> || std::is_same_v<T, std::uint64_t>;

}  // namespace migrationd::vmstate
