// SPDX-License-Identifier: Apache-2.0
//
// ByteReader and ByteWriter: big-endian, bounds-checked access to bytes in memory.
//
// Every integer the migration framework puts on the wire is big-endian and unaligned (stream.md section 1).
// The reader never throws and never reads past its span: a short read names its offset, consumes nothing.
// Neither owns the bytes it looks at; the writer owns what it wrote.
#pragma once

#include "base/result.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd {

using Bytes = std::vector<std::byte>;
using ByteView = std::span<const std::byte>;

template <class T>
T load_be(const std::byte* from) noexcept {
  static_assert(std::is_unsigned_v<T>);
  T value;
  std::memcpy(&value, from, sizeof value);
  if constexpr (sizeof(T) == 2) value = static_cast<T>(__builtin_bswap16(value));
  if constexpr (sizeof(T) == 4) value = __builtin_bswap32(value);
  if constexpr (sizeof(T) == 8) value = __builtin_bswap64(value);
  return value;
}

template <class T>
void store_be(std::byte* to, T value) noexcept {
  static_assert(std::is_unsigned_v<T>);
  if constexpr (sizeof(T) == 2) value = static_cast<T>(__builtin_bswap16(value));
  if constexpr (sizeof(T) == 4) value = __builtin_bswap32(value);
  if constexpr (sizeof(T) == 8) value = __builtin_bswap64(value);
  std::memcpy(to, &value, sizeof value);
}

inline ByteView as_bytes(std::string_view text) noexcept { return std::as_bytes(std::span(text.data(), text.size())); }
inline std::string_view as_text(ByteView bytes) noexcept {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class ByteReader {
 public:
  explicit ByteReader(ByteView bytes) noexcept : bytes_(bytes) {}

  std::size_t position() const noexcept { return position_; }
  std::size_t remaining() const noexcept { return bytes_.size() - position_; }
  bool at_end() const noexcept { return remaining() == 0; }
  ByteView rest() const noexcept { return bytes_.subspan(position_); }

  Result<std::uint8_t> u8() { return integer<std::uint8_t>(); }
  Result<std::uint16_t> u16() { return integer<std::uint16_t>(); }
  Result<std::uint32_t> u32() { return integer<std::uint32_t>(); }
  Result<std::uint64_t> u64() { return integer<std::uint64_t>(); }
  // `length` bytes, viewed in place.
  Result<ByteView> bytes(std::size_t length);
  Result<void> skip(std::size_t length);
  // u8 length and that many bytes, viewed in place ("str8" of stream.md).
  Result<std::string_view> str8();

  // Looks ahead without consuming; false when fewer bytes are there.
  bool peek(std::size_t offset, std::byte& out) const noexcept {
    if (offset >= remaining()) return false;
    out = bytes_[position_ + offset];
    return true;
  }

 private:
  Error short_read(std::size_t wanted) const;

  template <class T>
  Result<T> integer() {
    if (remaining() < sizeof(T)) return short_read(sizeof(T));
    const T value = load_be<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return value;
  }

  ByteView bytes_;
  std::size_t position_ = 0;
};

class ByteWriter {
 public:
  ByteWriter& u8(std::uint8_t value) { return integer(value); }
  ByteWriter& u16(std::uint16_t value) { return integer(value); }
  ByteWriter& u32(std::uint32_t value) { return integer(value); }
  ByteWriter& u64(std::uint64_t value) { return integer(value); }
  ByteWriter& bytes(ByteView value) {
    out_.insert(out_.end(), value.begin(), value.end());
    return *this;
  }
  ByteWriter& text(std::string_view value) { return bytes(as_bytes(value)); }
  // u8 length and the bytes. Longer than 255 is a programming error: callers prove names when they take them.
  ByteWriter& str8(std::string_view value);
  ByteWriter& zeros(std::size_t count) {
    out_.resize(out_.size() + count);
    return *this;
  }

  std::size_t size() const noexcept { return out_.size(); }
  ByteView view() const noexcept { return out_; }
  Bytes take() && noexcept { return std::move(out_); }
  void clear() noexcept { out_.clear(); }
  // Overwrites four bytes written before, for lengths known only afterwards.
  void patch_u32(std::size_t offset, std::uint32_t value) { store_be(out_.data() + offset, value); }

 private:
  template <class T>
  ByteWriter& integer(T value) {
    const auto at = out_.size();
    out_.resize(at + sizeof(T));
    store_be(out_.data() + at, value);
    return *this;
  }

  Bytes out_;
};

}  // namespace migrationd
