// SPDX-License-Identifier: Apache-2.0
//
// JsonLexer: a byte at a time in, tokens out (qmp.md 1.2). It knows where tokens end, not what they mean: strings keep
// their quotes and escapes, numbers their digits. Errors come out as tokens too and put it into skipping.
//
// Thread: one owner. Pure.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

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
  std::string_view text;
};

class JsonLexer {
 public:
  // At most two tokens come from one byte: the one it ends and the one it is. The texts are valid until the next
  // feed().
  struct Tokens {
    std::array<Token, 2> token;
    std::size_t count = 0;
  };
  Tokens feed(unsigned char byte);

  bool in_token() const noexcept { return state_ != State::start && state_ != State::skipping; }
  // Bytes of the unfinished token.
  std::size_t pending() const noexcept { return text_.size(); }
  // Forgets the unfinished token, which has grown past a limit, and skips what follows of it.
  void abandon();

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
  // What a byte means for the token that was begun.
  enum class Step : std::uint8_t { goes_on, is_last, is_behind, is_wrong };

  Step step(unsigned char byte);
  Step quoted(unsigned char byte, unsigned char quote, State escape);
  Step to(State next, bool accepted);
  void begin(unsigned char byte, Tokens& out);
  void emit(TokenKind kind, Tokens& out);
  TokenKind kind() const;

  State state_ = State::start;
  std::string text_;
  std::array<std::string, 2> done_;
};

}  // namespace migrationd::qmp
