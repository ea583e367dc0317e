// SPDX-License-Identifier: Apache-2.0
//
// JsonFramer: bytes in, documents or errors out, in QEMU 10.0's dialect of JSON (qmp.md 1.1 and 1.2).
//
// A document is complete when its outermost bracket closes (a bare number or keyword: when the byte after it comes).
// A *parse* error (tokens in the wrong order) consumes the whole document. A *lexical* error aborts at the offending
// byte; everything up to the next structural or control character is then skipped, and what follows is fresh input.
// So one bad line may yield several errors; a client resynchronises by a control character.
//
// Limits: base/limits.hpp (nesting and tokens as QEMU, size much lower with QEMU's text). Memory stays within the
// size limit however the input is cut.
//
// Thread: one owner. Pure: no I/O.
#pragma once

#include "base/limits.hpp"
#include "protocol/qmp/error.hpp"
#include "protocol/qmp/json_lexer.hpp"
#include "protocol/qmp/json_parser.hpp"

#include <cstdint>
#include <deque>
#include <optional>
#include <string_view>
#include <variant>

namespace migrationd::qmp {

// A complete document or why there is none. `end` counts the bytes fed since construction up to and including the one
// that completed it: descriptors that came with bytes before `end` belong to this document or an earlier one.
struct Document {
  std::variant<Json, QmpError> content;
  std::uint64_t end = 0;
};

class JsonFramer {
 public:
  JsonFramer() = default;
  explicit JsonFramer(std::size_t max_document_bytes) : max_bytes_(max_document_bytes) {}

  // Takes `bytes` until a document is complete or they are used up; returns how many it took and the document, if
  // one is complete. Call again with the rest. One byte can complete two documents ("12}" at '}'): the second comes
  // with the next call, which may be given no bytes.
  struct Fed {
    std::size_t taken;
    std::optional<Document> document;
  };
  Fed feed(std::string_view bytes);

  // Bytes fed so far.
  std::uint64_t position() const noexcept { return position_; }
  // A document was begun and is not complete; at the connection's end it is dropped.
  bool in_document() const noexcept { return !tokens_.empty() || lexer_.in_token(); }

 private:
  void push(const Token& token);
  void emit(std::variant<Json, QmpError> content);
  void drop_document();
  // The limit that `token` would exceed, or null.
  const char* exceeded(const Token& token) const;

  std::size_t max_bytes_ = limits::qmp_document_bytes;
  JsonLexer lexer_;
  TokenList tokens_;
  // Open brackets; may go below zero, which completes a document too.
  std::ptrdiff_t braces_ = 0;
  std::ptrdiff_t brackets_ = 0;
  std::uint64_t position_ = 0;
  std::deque<Document> ready_;
};

}  // namespace migrationd::qmp
