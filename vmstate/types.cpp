// SPDX-License-Identifier: Apache-2.0
#include "vmstate/types.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <type_traits>

namespace migrationd::vmstate {

CapabilityName CapabilityName::of(std::string_view name) {
  CapabilityName out;
  if (name.size() > out.text.size()) std::abort();
  out.length = static_cast<std::uint8_t>(name.size());
  std::copy(name.begin(), name.end(), out.text.begin());
  return out;
}

namespace codec {
namespace {

template <class T>
void save_integer(const void* from, std::size_t /*bytes*/, ByteWriter& out) {
  std::make_unsigned_t<T> value{};
  std::memcpy(&value, from, sizeof value);
  std::array<std::byte, sizeof value> wire{};
  store_be(wire.data(), value);
  out.bytes(wire);
}

template <class T>
Result<void> load_integer(void* to, std::size_t /*bytes*/, ByteReader& in) {
  MD_TRY(const ByteView wire, in.bytes(sizeof(T)));
  const auto value = load_be<std::make_unsigned_t<T>>(wire.data());
  std::memcpy(to, &value, sizeof value);
  return {};
}

void save_bool(const void* from, std::size_t /*bytes*/, ByteWriter& out) {
  out.u8(*static_cast<const bool*>(from) ? 1 : 0);
}

// No writer sends anything but 0 and 1, so another byte means that the two sides disagree about the layout.
Result<void> load_bool(void* to, std::size_t /*bytes*/, ByteReader& in) {
  MD_TRY(const std::uint8_t value, in.u8());
  if (value > 1) return wire_error(fmt::format("bool is {:#x}, neither 0 nor 1", value));
  *static_cast<bool*>(to) = value == 1;
  return {};
}

void save_buffer(const void* from, std::size_t bytes, ByteWriter& out) {
  out.bytes({static_cast<const std::byte*>(from), bytes});
}

Result<void> load_buffer(void* to, std::size_t bytes, ByteReader& in) {
  MD_TRY(const ByteView wire, in.bytes(bytes));
  if (!wire.empty()) std::memcpy(to, wire.data(), wire.size());
  return {};
}

void save_unused(const void* /*from*/, std::size_t bytes, ByteWriter& out) { out.zeros(bytes); }

Result<void> load_unused(void* /*to*/, std::size_t bytes, ByteReader& in) { return in.skip(bytes); }

void save_capability(const void* from, std::size_t /*bytes*/, ByteWriter& out) {
  out.str8(static_cast<const CapabilityName*>(from)->view());
}

Result<void> load_capability(void* to, std::size_t /*bytes*/, ByteReader& in) {
  MD_TRY(const std::string_view name, in.str8());
  *static_cast<CapabilityName*>(to) = CapabilityName::of(name);
  return {};
}

// Words of 64 bits, each big-endian; bits past the end are neither sent nor taken.
std::uint64_t last_word_mask(std::size_t bits) {
  return bits % 64 == 0 ? ~std::uint64_t{0} : (std::uint64_t{1} << (bits % 64)) - 1;
}

void save_bitmap(const void* from, std::size_t bits, ByteWriter& out) {
  const std::size_t words = bitmap_words(bits);
  for (std::size_t i = 0; i < words; ++i) {
    std::uint64_t word{};
    std::memcpy(&word, static_cast<const std::byte*>(from) + i * sizeof word, sizeof word);
    out.u64(i + 1 == words ? word & last_word_mask(bits) : word);
  }
}

Result<void> load_bitmap(void* to, std::size_t bits, ByteReader& in) {
  const std::size_t words = bitmap_words(bits);
  MD_TRY(const ByteView wire, in.bytes(words * sizeof(std::uint64_t)));
  for (std::size_t i = 0; i < words; ++i) {
    auto word = load_be<std::uint64_t>(wire.data() + i * sizeof(std::uint64_t));
    if (i + 1 == words) word &= last_word_mask(bits);
    std::memcpy(static_cast<std::byte*>(to) + i * sizeof word, &word, sizeof word);
  }
  return {};
}

template <class T>
Result<void> load_equal(void* to, std::size_t /*bytes*/, ByteReader& in) {
  MD_TRY(const ByteView wire, in.bytes(sizeof(T)));
  const auto incoming = load_be<T>(wire.data());
  T local{};
  std::memcpy(&local, to, sizeof local);
  if (local == incoming) return {};
  return wire_error(fmt::format("{:x} != {:x}", local, incoming));
}

Result<void> load_le(void* to, std::size_t /*bytes*/, ByteReader& in) {
  MD_TRY(const std::uint32_t wire, in.u32());
  const auto incoming = static_cast<std::int32_t>(wire);
  std::int32_t local{};
  std::memcpy(&local, to, sizeof local);
  if (incoming < 0 || incoming > local) {
    return wire_error(fmt::format("Invalid value {} expecting positive value <= {}", incoming, local));
  }
  std::memcpy(to, &incoming, sizeof incoming);
  return {};
}

template <class T>
constexpr Codec equal_to(std::string_view name) {
  return {name, sizeof(T), &save_integer<T>, &load_equal<T>};
}

template <class T>
constexpr Codec integer(std::string_view name) {
  return {name, sizeof(T), &save_integer<T>, &load_integer<T>};
}

}  // namespace

constinit const Codec boolean{"bool", 1, &save_bool, &load_bool};
constinit const Codec i8 = integer<std::int8_t>("int8");
constinit const Codec i16 = integer<std::int16_t>("int16");
constinit const Codec i32 = integer<std::int32_t>("int32");
constinit const Codec i64 = integer<std::int64_t>("int64");
constinit const Codec u8 = integer<std::uint8_t>("uint8");
constinit const Codec u16 = integer<std::uint16_t>("uint16");
constinit const Codec u32 = integer<std::uint32_t>("uint32");
constinit const Codec u64 = integer<std::uint64_t>("uint64");
constinit const Codec buffer{"buffer", 0, &save_buffer, &load_buffer};
constinit const Codec unused{"unused_buffer", 0, &save_unused, &load_unused};
constinit const Codec capability{"capability", 0, &save_capability, &load_capability};
static_assert(sizeof(double) == sizeof(std::uint64_t));
constinit const Codec binary64 = integer<std::uint64_t>("CPU_Double_U");
constinit const Codec timer = integer<std::uint64_t>("timer");
constinit const Codec bitmap{"bitmap", 0, &save_bitmap, &load_bitmap};
constinit const Codec u8_equal = equal_to<std::uint8_t>("uint8 equal");
constinit const Codec u16_equal = equal_to<std::uint16_t>("uint16 equal");
constinit const Codec i32_equal = equal_to<std::uint32_t>("int32 equal");
constinit const Codec u32_equal = equal_to<std::uint32_t>("uint32 equal");
constinit const Codec u64_equal = equal_to<std::uint64_t>("int64 equal");
constinit const Codec i32_le{"int32 le", sizeof(std::int32_t), &save_integer<std::int32_t>, &load_le};

}  // namespace codec
}  // namespace migrationd::vmstate
