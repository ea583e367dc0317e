// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/json_framer.hpp"

#include <fmt/format.h>

#include <utility>

namespace migrationd::qmp {

JsonFramer::Fed JsonFramer::feed(std::string_view bytes) {
  std::size_t taken = 0;
  while (ready_.empty() && taken < bytes.size()) {
    const auto byte = static_cast<unsigned char>(bytes[taken++]);
    ++position_;
    const auto tokens = lexer_.feed(byte);
    for (std::size_t i = 0; i < tokens.count; ++i) push(tokens.token[i]);
    if (lexer_.pending() + tokens_.text_bytes() > max_bytes_) {
      lexer_.abandon();
      emit(QmpError("JSON token size limit exceeded"));
    }
  }
  if (ready_.empty()) return {taken, std::nullopt};
  auto document = std::move(ready_.front());
  ready_.pop_front();
  return {taken, std::move(document)};
}

void JsonFramer::drop_document() {
  tokens_.clear();
  braces_ = 0;
  brackets_ = 0;
}

void JsonFramer::emit(std::variant<Json, QmpError> content) {
  drop_document();
  ready_.push_back({std::move(content), position_});
}

const char* JsonFramer::exceeded(const Token& token) const {
  if (tokens_.text_bytes() + token.text.size() > max_bytes_) return "JSON token size limit exceeded";
  if (tokens_.size() + 1 > limits::qmp_tokens) return "JSON token count limit exceeded";
  if (braces_ + brackets_ > static_cast<std::ptrdiff_t>(limits::qmp_nesting))
    return "JSON nesting depth limit exceeded";
  return nullptr;
}

void JsonFramer::push(const Token& token) {
  switch (token.kind) {
    case TokenKind::left_brace:
      ++braces_;
      break;
    case TokenKind::right_brace:
      --braces_;
      break;
    case TokenKind::left_bracket:
      ++brackets_;
      break;
    case TokenKind::right_bracket:
      --brackets_;
      break;
    case TokenKind::error:
      // The text is quoted as a C string: it ends at a NUL.
      emit(QmpError(fmt::format("JSON parse error, stray '{}'", token.text.substr(0, token.text.find('\0')))));
      return;
    case TokenKind::colon:
    case TokenKind::comma:
    case TokenKind::integer:
    case TokenKind::number:
    case TokenKind::keyword:
    case TokenKind::string:
      break;
  }
  if (const char* limit = exceeded(token)) {
    emit(QmpError(limit));
    return;
  }
  tokens_.push(token);
  const bool open = (braces_ > 0 || brackets_ > 0) && braces_ >= 0 && brackets_ >= 0;
  if (open) return;
  auto value = parse_json(tokens_);
  if (value) {
    emit(std::move(*value));
  } else {
    emit(value.error());
  }
}

}  // namespace migrationd::qmp
