// SPDX-License-Identifier: Apache-2.0
//
// JsonLexer: a byte at a time in, tokens out (qmp.md 1.2). It knows where tokens end, not what they mean: strings keep
// their quotes and escapes, numbers their digits. Errors come out as tokens too and put it into skipping.
//
// Thread: one owner. Pure.
#pragma once

#include "base/limits.hpp"

#include <cstdint>
#include <string>

namespace migrationd::qmp {

enum class TokenKind : std::uint8_t {
  left_brace,
  right_brace,
  left_bracket,
  right_bracket,
  colon,
  comma,
  integer,
  number,  // with fraction or exponent
  keyword,
  string,
  error  // lexical: `text` is the token so far, the offending byte included
};

struct Token {
  TokenKind kind;
  std::string text;
};

class JsonLexer {
 public:
  // At most two tokens come from one byte: the one it ends and the one it is.
  struct Tokens {
    Token token[2];
    int count = 0;
  };
  void feed(unsigned char byte, Tokens& out);

  bool in_token() const noexcept { return state_ != State::start && state_ != State::skipping; }
  // Length of the unfinished token.
  std::size_t pending() const noexcept { return text_.size(); }
  // Forgets the unfinished token (it grew past a limit).
  void reset();

 private:
  enum class State : std::uint8_t {
    start,
    skipping,
    double_quoted,
    double_quoted_escape,
    single_quoted,
    single_quoted_escape,
    minus,
    zero,
    digits,
    point,
    fraction,
    exponent,
    exponent_sign,
    exponent_digits,
    keyword
  };
  bool step(unsigned char byte, Tokens& out);
  void begin(unsigned char byte, Tokens& out);
  void take(TokenKind kind, Tokens& out);
  void fail(unsigned char byte, Tokens& out);

  State state_ = State::start;
  std::string text_;
};

}  // namespace migrationd::qmp
