// SPDX-License-Identifier: Apache-2.0
//
// Byte strings for the stream tests, written as the specification writes them.
#pragma once

#include "base/bytes.hpp"

#include <cstdlib>
#include <string>
#include <string_view>

namespace migrationd::test {

// "08 00 'ram' 0a": hexadecimal pairs, and text between single quotes. Blanks mean nothing.
inline Bytes bytes_of(std::string_view text) {
  Bytes out;
  bool quoted = false;
  int high = -1;
  for (const char c : text) {
    if (c == '\'') {
      quoted = !quoted;
    } else if (quoted) {
      out.push_back(static_cast<std::byte>(c));
    } else if (c != ' ' && c != '\n') {
      const std::string_view digits = "0123456789abcdef";
      const auto digit = digits.find(c);
      if (digit == std::string_view::npos) std::abort();
      if (high < 0) {
        high = static_cast<int>(digit);
      } else {
        out.push_back(static_cast<std::byte>(high * 16 + static_cast<int>(digit)));
        high = -1;
      }
    }
  }
  if (high >= 0 || quoted) std::abort();
  return out;
}

inline Bytes operator+(Bytes left, const Bytes& right) {
  left.insert(left.end(), right.begin(), right.end());
  return left;
}

// Shows `decode` every proper prefix of `whole`; true when each one asks for more, never for more than `whole` has, and
// never for less than it was shown.
template <class Decode>
bool every_cut_needs_more(ByteView whole, Decode decode) {
  for (std::size_t length = 0; length < whole.size(); ++length) {
    const auto decoded = decode(whole.first(length));
    if (!decoded.needs_more() || decoded.needed() <= length || decoded.needed() > whole.size()) return false;
  }
  return true;
}

}  // namespace migrationd::test
