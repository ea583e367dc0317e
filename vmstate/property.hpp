// SPDX-License-Identifier: Apache-2.0
//
// Properties: what a machine version may switch in a device, so that a newer program can send to an older one.
//
// A property is a member of the state struct with a name: a bool or an integer that predicates read.
//
//     inline constexpr Property disk_properties[] = {property<&Disk::send_journal>("x-send-journal")};
//     inline constexpr CompatProperty before_2_0[] = {{"disk", "x-send-journal", "off"}};
//     inline constexpr MachineVersion versions[] = {{"pc-2.0", {}}, {"pc-1.0", before_2_0}};   // newest first
//
// DeviceSet::become("pc-1.0", versions) applies the rows of every version from the newest down to the one asked for:
// what was true before 2.0 is true of all older ones too. Both sides of a migration do that before a device is used,
// and before the user's own settings.
//
// Thread: constants.
#pragma once

#include "base/result.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

namespace migrationd::vmstate {

enum class PropertyType : std::uint8_t { boolean, u8, u16, u32, u64, i8, i16, i32, i64 };

struct Property {
  std::string_view name;
  PropertyType type = PropertyType::boolean;
  void* (*address)(void* object) = nullptr;  // null: `offset`
  std::size_t offset = 0;                    // bytes from the object's start, for those made at run time
};

struct CompatProperty {
  std::string_view device;  // name of the description
  std::string_view property;
  std::string_view value;  // "on", "off", or a number
};

// A machine version, and what its devices do otherwise than those of the next newer one.
struct MachineVersion {
  std::string_view name;
  std::span<const CompatProperty> compat{};
};

namespace detail {

template <class T>
inline constexpr PropertyType property_type = PropertyType::boolean;
template <>
inline constexpr PropertyType property_type<std::uint8_t> = PropertyType::u8;
template <>
inline constexpr PropertyType property_type<std::uint16_t> = PropertyType::u16;
template <>
inline constexpr PropertyType property_type<std::uint32_t> = PropertyType::u32;
template <>
inline constexpr PropertyType property_type<std::uint64_t> = PropertyType::u64;
template <>
inline constexpr PropertyType property_type<std::int8_t> = PropertyType::i8;
template <>
inline constexpr PropertyType property_type<std::int16_t> = PropertyType::i16;
template <>
inline constexpr PropertyType property_type<std::int32_t> = PropertyType::i32;
template <>
inline constexpr PropertyType property_type<std::int64_t> = PropertyType::i64;

template <class Owner, class T, T Owner::*Member>
void* property_address(void* object) {
  return &(static_cast<Owner*>(object)->*Member);
}

template <auto Member, class Owner, class T>
constexpr Property make_property(std::string_view name, T Owner::* /*member*/) {
  static_assert(std::is_same_v<T, bool> || property_type<T> != PropertyType::boolean, "a bool or a sized integer");
  return {name, property_type<T>, &property_address<Owner, T, Member>, 0};
}

}  // namespace detail

template <auto Member>
constexpr Property property(std::string_view name) {
  return detail::make_property<Member>(name, Member);
}

// Sets a property of `object` from its text. Errors (ErrorKind::plan): not a value of its type.
Result<void> set_property(const Property& property, void* object, std::string_view value);

}  // namespace migrationd::vmstate
