// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/json_parser.hpp"

#include "protocol/qmp/utf8.hpp"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <cstdlib>

namespace migrationd::qmp {

void TokenList::push(const Token& token) {
  tokens_.push_back(
      {token.kind, static_cast<std::uint32_t>(text_.size()), static_cast<std::uint32_t>(token.text.size())});
  text_ += token.text;
}

Token TokenList::operator[](std::size_t index) const {
  const auto& stored = tokens_[index];
  return {stored.kind, std::string_view(text_).substr(stored.begin, stored.length)};
}

void TokenList::clear() {
  tokens_.clear();
  text_.clear();
  // Back to little memory after a big document; small ones reuse what is there.
  constexpr std::size_t kept = 4096;
  if (tokens_.capacity() > kept) tokens_.shrink_to_fit();
  if (text_.capacity() > kept) text_.shrink_to_fit();
}

namespace {

QmpError parse_error(std::string_view text) { return QmpError(fmt::format("JSON parse error, {}", text)); }

class Parser {
 public:
  explicit Parser(const TokenList& tokens) : tokens_(tokens) {}

  QmpResult<Json> value();

 private:
  bool next_is(TokenKind kind) const { return at_ < tokens_.size() && tokens_[at_].kind == kind; }
  QmpResult<Json> object();
  QmpResult<Json> array();
  QmpResult<> pair(Json& into);

  const TokenList& tokens_;
  std::size_t at_ = 0;
};

// The characters of a string token, quotes and escapes resolved.
class StringReader {
 public:
  explicit StringReader(std::string_view token) : rest_(token.substr(1)) {}

  QmpResult<Json> read();

 private:
  QmpResult<> escape(std::string& out);
  QmpResult<> unicode_escape(std::string& out);
  std::optional<std::uint32_t> hex4(std::size_t offset) const;

  std::string_view rest_;  // the closing quote included, as in QEMU's texts
};

QmpResult<Json> StringReader::read() {
  std::string out;
  while (rest_.size() > 1) {
    if (rest_[0] == '\\') {
      MD_CHECK(escape(out));
      continue;
    }
    const auto decoded = decode_utf8(rest_.substr(0, rest_.size() - 1));
    if (!decoded.code_point) return parse_error("invalid UTF-8 sequence in string");
    append_utf8(out, *decoded.code_point);
    rest_.remove_prefix(decoded.length);
  }
  return Json(std::move(out));
}

QmpResult<> StringReader::escape(std::string& out) {
  const char which = rest_[1];
  switch (which) {
    case '"':
    case '\'':
    case '\\':
    case '/':
      out += which;
      break;
    case 'b':
      out += '\b';
      break;
    case 'f':
      out += '\f';
      break;
    case 'n':
      out += '\n';
      break;
    case 'r':
      out += '\r';
      break;
    case 't':
      out += '\t';
      break;
    case 'u':
      return unicode_escape(out);
    default:
      return parse_error("invalid escape sequence in string");
  }
  rest_.remove_prefix(2);
  return {};
}

std::optional<std::uint32_t> StringReader::hex4(std::size_t offset) const {
  const auto digits = rest_.substr(std::min(offset, rest_.size()), 4);
  std::uint32_t value = 0;
  const auto* end = digits.data() + digits.size();
  const auto parsed = std::from_chars(digits.data(), end, value, 16);
  if (digits.size() != 4 || parsed.ec != std::errc() || parsed.ptr != end) return std::nullopt;
  return value;
}

QmpResult<> StringReader::unicode_escape(std::string& out) {
  constexpr std::size_t escape_bytes = 6;
  std::size_t quoted = escape_bytes;
  const auto refuse = [&] {
    return parse_error(fmt::format("{} is not a valid Unicode character", rest_.substr(0, quoted)));
  };
  const auto first = hex4(2);
  if (!first) return refuse();
  std::uint32_t code_point = *first;
  if (code_point >= 0xd800 && code_point <= 0xdbff && rest_.substr(escape_bytes, 2) == "\\u") {
    const auto second = hex4(escape_bytes + 2);
    if (second && *second >= 0xdc00 && *second <= 0xdfff) {
      code_point = 0x10000 + ((code_point - 0xd800) << 10) + (*second - 0xdc00);
      quoted += escape_bytes;
    }
  }
  const bool surrogate = code_point >= 0xd800 && code_point <= 0xdfff;
  if (surrogate || is_noncharacter(code_point)) return refuse();
  append_utf8(out, code_point);
  rest_.remove_prefix(quoted);
  return {};
}

QmpResult<Json> keyword(std::string_view text) {
  if (text == "true") return Json(true);
  if (text == "false") return Json(false);
  if (text == "null") return Json(nullptr);
  return parse_error(fmt::format("invalid keyword '{}'", text));
}

QmpResult<Json> number(std::string_view text) {
  const auto* end = text.data() + text.size();
  if (std::int64_t value = 0; std::from_chars(text.data(), end, value) == std::from_chars_result{end, std::errc()}) {
    if (value >= 0) return Json(static_cast<std::uint64_t>(value));
    return Json(value);
  }
  if (std::uint64_t value = 0; std::from_chars(text.data(), end, value) == std::from_chars_result{end, std::errc()})
    return Json(value);
  const double value = std::strtod(std::string(text).c_str(), nullptr);
  if (!std::isfinite(value)) return parse_error("number out of range");
  return Json(value);
}

QmpResult<Json> Parser::value() {
  if (at_ == tokens_.size()) return parse_error("expecting value");
  const auto token = tokens_[at_++];
  switch (token.kind) {
    case TokenKind::left_brace:
      return object();
    case TokenKind::left_bracket:
      return array();
    case TokenKind::string:
      return StringReader(token.text).read();
    case TokenKind::integer:
    case TokenKind::number:
      return number(token.text);
    case TokenKind::keyword:
      return keyword(token.text);
    case TokenKind::right_brace:
    case TokenKind::right_bracket:
    case TokenKind::colon:
    case TokenKind::comma:
    case TokenKind::error:
      break;
  }
  return parse_error("expecting value");
}

QmpResult<> Parser::pair(Json& into) {
  MD_TRY(const Json key, value());
  if (!key.is_string()) return parse_error("key is not a string in object");
  if (!next_is(TokenKind::colon)) return parse_error("missing : in object pair");
  ++at_;
  MD_TRY(Json content, value());
  const auto& name = key.get_ref<const std::string&>();
  if (into.contains(name)) return parse_error("duplicate key");
  into[name] = std::move(content);
  return {};
}

QmpResult<Json> Parser::object() {
  Json out = Json::object();
  if (!next_is(TokenKind::right_brace)) {
    MD_CHECK(pair(out));
    while (!next_is(TokenKind::right_brace)) {
      if (!next_is(TokenKind::comma)) return parse_error("expected separator in dict");
      ++at_;
      MD_CHECK(pair(out));
    }
  }
  ++at_;
  return out;
}

QmpResult<Json> Parser::array() {
  Json out = Json::array();
  if (!next_is(TokenKind::right_bracket)) {
    MD_TRY(Json first, value());
    out.push_back(std::move(first));
    while (!next_is(TokenKind::right_bracket)) {
      if (!next_is(TokenKind::comma)) return parse_error("expected separator in list");
      ++at_;
      MD_TRY(Json element, value());
      out.push_back(std::move(element));
    }
  }
  ++at_;
  return out;
}

}  // namespace

QmpResult<Json> parse_json(const TokenList& tokens) { return Parser(tokens).value(); }

}  // namespace migrationd::qmp
