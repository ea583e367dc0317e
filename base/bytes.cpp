// SPDX-License-Identifier: Apache-2.0
#include "base/bytes.hpp"

#include <fmt/format.h>

#include <cstdlib>

namespace migrationd {

Error ByteReader::short_read(std::size_t wanted) const {
  return wire_error(
      fmt::format("ends too early: {} bytes wanted at offset {:#x}, {} left", wanted, position_, remaining()));
}

Result<ByteView> ByteReader::bytes(std::size_t length) {
  if (remaining() < length) return short_read(length);
  const ByteView view = bytes_.subspan(position_, length);
  position_ += length;
  return view;
}

Result<void> ByteReader::skip(std::size_t length) {
  if (remaining() < length) return short_read(length);
  position_ += length;
  return {};
}

Result<std::string_view> ByteReader::str8() {
  const auto start = position_;
  MD_TRY(const std::uint8_t length, u8());
  auto view = bytes(length);
  if (!view) {
    position_ = start;  // a refused read consumes nothing
    return std::move(view).error();
  }
  return as_text(*view);
}

ByteWriter& ByteWriter::str8(std::string_view value) {
  if (value.size() > 255) std::abort();
  u8(static_cast<std::uint8_t>(value.size()));
  return text(value);
}

}  // namespace migrationd
