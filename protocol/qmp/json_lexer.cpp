// SPDX-License-Identifier: Apache-2.0
//
// A table would be shorter and a switch per state is easier to compare with the dialect as it was measured.
#include "protocol/qmp/json_lexer.hpp"

namespace migrationd::qmp {

namespace {

bool is_digit(unsigned char byte) { return byte >= '0' && byte <= '9'; }
bool is_keyword(unsigned char byte) { return byte >= 'a' && byte <= 'z'; }
bool is_exponent(unsigned char byte) { return byte == 'e' || byte == 'E'; }
bool is_space(unsigned char byte) { return byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n'; }

// Inside quotes: control characters and the two bytes that UTF-8 never uses are lexical errors; other bytes are judged
// by the parser.
bool may_be_quoted(unsigned char byte) { return byte >= 0x20 && byte < 0xfe; }

// Where skipping ends: at a structural character, a control character other than tab, or FE and FF.
bool ends_skipping(unsigned char byte) {
  switch (byte) {
    case '{':
    case '}':
    case '[':
    case ']':
    case ':':
    case ',':
      return true;
    default:
      return (byte < 0x20 && byte != '\t') || byte >= 0xfe;
  }
}

}  // namespace

void JsonLexer::abandon() {
  text_.clear();
  state_ = State::skipping;
}

JsonLexer::Tokens JsonLexer::feed(unsigned char byte) {
  Tokens out;
  if (state_ == State::skipping) {
    if (!ends_skipping(byte)) return out;
    state_ = State::start;
  }
  if (state_ != State::start) {
    switch (step(byte)) {
      case Step::goes_on:
        text_ += static_cast<char>(byte);
        return out;
      case Step::is_last:
        text_ += static_cast<char>(byte);
        emit(kind(), out);
        return out;
      case Step::is_wrong:
        text_ += static_cast<char>(byte);
        emit(TokenKind::error, out);
        return out;
      case Step::is_behind:
        emit(kind(), out);
        break;
    }
  }
  begin(byte, out);
  return out;
}

void JsonLexer::emit(TokenKind kind, Tokens& out) {
  auto& done = done_[out.count];
  done.swap(text_);
  text_.clear();
  out.token[out.count++] = {kind, done};
  state_ = kind == TokenKind::error ? State::skipping : State::start;
}

TokenKind JsonLexer::kind() const {
  switch (state_) {
    case State::double_quoted:
    case State::single_quoted:
      return TokenKind::string;
    case State::zero:
    case State::digits:
      return TokenKind::integer;
    case State::fraction:
    case State::exponent_digits:
      return TokenKind::number;
    case State::keyword:
      return TokenKind::keyword;
    case State::start:
    case State::skipping:
    case State::double_quoted_escape:
    case State::single_quoted_escape:
    case State::minus:
    case State::point:
    case State::exponent:
    case State::exponent_sign:
      break;
  }
  return TokenKind::error;
}

JsonLexer::Step JsonLexer::to(State next, bool accepted) {
  if (!accepted) return Step::is_wrong;
  state_ = next;
  return Step::goes_on;
}

JsonLexer::Step JsonLexer::quoted(unsigned char byte, unsigned char quote, State escape) {
  if (byte == quote) return Step::is_last;
  return to(byte == '\\' ? escape : state_, may_be_quoted(byte));
}

JsonLexer::Step JsonLexer::step(unsigned char byte) {
  switch (state_) {
    case State::double_quoted:
      return quoted(byte, '"', State::double_quoted_escape);
    case State::single_quoted:
      return quoted(byte, '\'', State::single_quoted_escape);
    case State::double_quoted_escape:
      return to(State::double_quoted, may_be_quoted(byte));
    case State::single_quoted_escape:
      return to(State::single_quoted, may_be_quoted(byte));
    case State::minus:
      return to(byte == '0' ? State::zero : State::digits, is_digit(byte));
    case State::zero:
      if (is_digit(byte)) return Step::is_wrong;
      [[fallthrough]];
    case State::digits:
      if (byte == '.') return to(State::point, true);
      if (is_exponent(byte)) return to(State::exponent, true);
      return is_digit(byte) ? Step::goes_on : Step::is_behind;
    case State::point:
      return to(State::fraction, is_digit(byte));
    case State::fraction:
      if (is_exponent(byte)) return to(State::exponent, true);
      return is_digit(byte) ? Step::goes_on : Step::is_behind;
    case State::exponent:
      if (byte == '+' || byte == '-') return to(State::exponent_sign, true);
      return to(State::exponent_digits, is_digit(byte));
    case State::exponent_sign:
      return to(State::exponent_digits, is_digit(byte));
    case State::exponent_digits:
      return is_digit(byte) ? Step::goes_on : Step::is_behind;
    case State::keyword:
      return is_keyword(byte) ? Step::goes_on : Step::is_behind;
    case State::start:
    case State::skipping:
      break;
  }
  return Step::is_wrong;
}

void JsonLexer::begin(unsigned char byte, Tokens& out) {
  if (is_space(byte)) return;
  text_.assign(1, static_cast<char>(byte));
  switch (byte) {
    case '{':
      return emit(TokenKind::left_brace, out);
    case '}':
      return emit(TokenKind::right_brace, out);
    case '[':
      return emit(TokenKind::left_bracket, out);
    case ']':
      return emit(TokenKind::right_bracket, out);
    case ':':
      return emit(TokenKind::colon, out);
    case ',':
      return emit(TokenKind::comma, out);
    case '"':
      state_ = State::double_quoted;
      return;
    case '\'':
      state_ = State::single_quoted;
      return;
    case '-':
      state_ = State::minus;
      return;
    case '0':
      state_ = State::zero;
      return;
    default:
      break;
  }
  if (is_digit(byte)) {
    state_ = State::digits;
  } else if (is_keyword(byte)) {
    state_ = State::keyword;
  } else {
    emit(TokenKind::error, out);
  }
}

}  // namespace migrationd::qmp
