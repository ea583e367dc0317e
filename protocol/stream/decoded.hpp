// SPDX-License-Identifier: Apache-2.0
//
// Decoded<T>: what an incremental decoder says about the bytes it was shown.
//
// Every decoder of this folder is a pure function of the bytes available so far. It answers one of three:
//   need_more   nothing was consumed; show it at least `needed()` bytes from the same start, then ask again
//   ready       value() was decoded from the first `consumed()` bytes
//   failed      error(); the bytes can never be right
// needed() is exact as far as the bytes seen allow, so that a caller may block for it: an honest peer always
// sends that many (one decoder, the configuration section's, looks one byte ahead).
//
// CodecCursor is the reader the decoders share: reads either succeed or remember how many bytes were missing.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"

#include <cstddef>
#include <string_view>
#include <utility>
#include <variant>

namespace migrationd::stream {

template <class T>
class [[nodiscard]] Decoded {
 public:
  static Decoded need_more(std::size_t total) { return Decoded(State(std::in_place_index<0>, total)); }
  static Decoded ready(T value, std::size_t consumed) {
    return Decoded(State(std::in_place_index<1>, Value{std::move(value), consumed}));
  }
  Decoded(Error error) : state_(std::in_place_index<2>, std::move(error)) {}  // NOLINT: as Result

  bool needs_more() const noexcept { return state_.index() == 0; }
  bool is_ready() const noexcept { return state_.index() == 1; }
  bool failed() const noexcept { return state_.index() == 2; }

  // Bytes wanted, counted from the start of what was shown; more than was shown.
  std::size_t needed() const { return std::get<0>(state_); }
  std::size_t consumed() const { return std::get<1>(state_).consumed; }
  T& value() & { return std::get<1>(state_).value; }
  const T& value() const& { return std::get<1>(state_).value; }
  T&& value() && { return std::move(std::get<1>(state_).value); }
  const Error& error() const& { return std::get<2>(state_); }
  Error&& error() && { return std::move(std::get<2>(state_)); }

 private:
  struct Value {
    T value;
    std::size_t consumed;
  };
  using State = std::variant<std::size_t, Value, Error>;
  explicit Decoded(State state) : state_(std::move(state)) {}
  State state_;
};

class CodecCursor {
 public:
  explicit CodecCursor(ByteView bytes) noexcept : bytes_(bytes) {}

  bool u8(std::uint8_t& out) noexcept { return integer(out); }
  bool u16(std::uint16_t& out) noexcept { return integer(out); }
  bool u32(std::uint32_t& out) noexcept { return integer(out); }
  bool u64(std::uint64_t& out) noexcept { return integer(out); }
  bool bytes(std::size_t length, ByteView& out) noexcept {
    if (!has(length)) return false;
    out = bytes_.subspan(position_, length);
    position_ += length;
    return true;
  }
  bool str8(std::string_view& out) noexcept {
    std::uint8_t length = 0;
    ByteView view;
    if (!u8(length) || !bytes(length, view)) return false;
    out = as_text(view);
    return true;
  }
  // Whether `length` more bytes are there; remembers how many were wanted.
  bool has(std::size_t length) noexcept {
    if (bytes_.size() - position_ >= length) return true;
    needed_ = position_ + length;
    return false;
  }

  std::size_t position() const noexcept { return position_; }
  std::size_t needed() const noexcept { return needed_; }

 private:
  template <class T>
  bool integer(T& out) noexcept {
    if (!has(sizeof(T))) return false;
    out = load_be<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return true;
  }

  ByteView bytes_;
  std::size_t position_ = 0;
  std::size_t needed_ = 0;
};

}  // namespace migrationd::stream
