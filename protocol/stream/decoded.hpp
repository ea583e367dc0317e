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
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

namespace migrationd::stream {

template <class T>
class [[nodiscard]] Decoded {
 public:
  static Decoded need_more(std::size_t total) { return Decoded(State::need_more, total); }
  // Forwards, for GCC 12 takes the destructor of a moved-from variant parameter for a read of uninitialised memory.
  template <class U = T>
  static Decoded ready(U&& value, std::size_t consumed) {
    Decoded out(State::ready, consumed);
    out.value_.emplace(std::forward<U>(value));
    return out;
  }
  Decoded(Error error) : state_(State::failed), error_(std::move(error)) {}  // NOLINT: converts, as Result does

  bool needs_more() const noexcept { return state_ == State::need_more; }
  bool is_ready() const noexcept { return state_ == State::ready; }
  bool failed() const noexcept { return state_ == State::failed; }

  // Bytes wanted, counted from the start of what was shown; more than was shown.
  std::size_t needed() const noexcept { return count_; }
  std::size_t consumed() const noexcept { return count_; }
  // Only when is_ready().
  T& value() & { return *value_; }
  const T& value() const& { return *value_; }
  T&& value() && { return std::move(*value_); }
  // Only when failed().
  const Error& error() const& noexcept { return error_; }
  Error&& error() && noexcept { return std::move(error_); }

 private:
  enum class State : std::uint8_t { need_more, ready, failed };
  Decoded(State state, std::size_t count) : state_(state), count_(count) {}

  State state_;
  std::size_t count_ = 0;
  std::optional<T> value_;
  Error error_;
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
