// SPDX-License-Identifier: Apache-2.0
//
// From the tokens of one document to its value, with QEMU's texts for what is wrong (qmp.md 1.2).
//
// Integers in -2^63 ... 2^64-1 are kept exactly (never as double); beyond that, and with a point or exponent, numbers
// are doubles. What does not fit a double is refused (QEMU takes it and answers "inf", which is no JSON).
//
// Thread: pure.
#pragma once

#include "protocol/qmp/error.hpp"
#include "protocol/qmp/json_lexer.hpp"

#include <cstdint>
#include <vector>

namespace migrationd::qmp {

// The tokens of a document: 12 bytes each beside their text, for a client may send a million of them.
class TokenList {
 public:
  std::size_t size() const noexcept { return tokens_.size(); }
  bool empty() const noexcept { return tokens_.empty(); }
  // Bytes of text. The owner keeps it below limits::qmp_document_bytes.
  std::size_t text_bytes() const noexcept { return text_.size(); }
  void push(const Token& token);
  Token operator[](std::size_t index) const;
  void clear();

 private:
  struct Stored {
    TokenKind kind;
    std::uint32_t begin;
    std::uint32_t length;
  };
  std::string text_;
  std::vector<Stored> tokens_;
};

// Nesting is bounded by limits::qmp_nesting before this is called.
QmpResult<Json> parse_json(const TokenList& tokens);

}  // namespace migrationd::qmp
