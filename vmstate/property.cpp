// SPDX-License-Identifier: Apache-2.0
#include "vmstate/property.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cstring>
#include <optional>

namespace migrationd::vmstate {
namespace {

std::optional<bool> switch_of(std::string_view value) {
  if (value == "on" || value == "true") return true;
  if (value == "off" || value == "false") return false;
  return std::nullopt;
}

// Decimal, or hexadecimal behind 0x; the whole text.
template <class T>
bool store_number(void* to, std::string_view value) {
  const bool is_hex = value.starts_with("0x");
  if (is_hex) value.remove_prefix(2);
  T number{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number, is_hex ? 16 : 10);
  if (error != std::errc{} || end != value.data() + value.size() || value.empty()) return false;
  std::memcpy(to, &number, sizeof number);
  return true;
}

bool store(PropertyType type, void* to, std::string_view value) {
  switch (type) {
    case PropertyType::boolean: {
      const auto on = switch_of(value);
      if (on) std::memcpy(to, &*on, sizeof *on);
      return on.has_value();
    }
    case PropertyType::u8:
      return store_number<std::uint8_t>(to, value);
    case PropertyType::u16:
      return store_number<std::uint16_t>(to, value);
    case PropertyType::u32:
      return store_number<std::uint32_t>(to, value);
    case PropertyType::u64:
      return store_number<std::uint64_t>(to, value);
    case PropertyType::i8:
      return store_number<std::int8_t>(to, value);
    case PropertyType::i16:
      return store_number<std::int16_t>(to, value);
    case PropertyType::i32:
      return store_number<std::int32_t>(to, value);
    case PropertyType::i64:
      return store_number<std::int64_t>(to, value);
  }
  return false;
}

}  // namespace

Result<void> set_property(const Property& property, void* object, std::string_view value) {
  void* const to = property.address != nullptr ? property.address(object)
                                               : static_cast<void*>(static_cast<std::byte*>(object) + property.offset);
  if (store(property.type, to, value)) return {};
  return plan_error(fmt::format("property '{}' cannot be '{}'", property.name, printable(value)));
}

}  // namespace migrationd::vmstate
