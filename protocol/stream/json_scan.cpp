// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/json_scan.hpp"

#include <array>
#include <charconv>
#include <string>
#include <system_error>

namespace migrationd::stream {

namespace {

// Bytes that stand for themselves in a string: ASCII but for quotes, backslashes and control characters.
constexpr std::array<bool, 256> plain_bytes = [] {
  std::array<bool, 256> plain{};
  for (std::size_t c = 0x20; c < 0x80; ++c) plain[c] = c != '"' && c != '\\';
  return plain;
}();

bool is_plain(char c) noexcept { return plain_bytes[static_cast<unsigned char>(c)]; }
bool is_digit(char c) noexcept { return c >= '0' && c <= '9'; }

void append_utf8(std::string& out, std::uint32_t point) {
  const auto tail = [&out](std::uint32_t bits) { out += static_cast<char>(0x80U | (bits & 0x3fU)); };
  if (point < 0x80) {
    out += static_cast<char>(point);
  } else if (point < 0x800) {
    out += static_cast<char>(0xc0U | point >> 6);
    tail(point);
  } else if (point < 0x10000) {
    out += static_cast<char>(0xe0U | point >> 12);
    tail(point >> 6);
    tail(point);
  } else {
    out += static_cast<char>(0xf0U | point >> 18);
    tail(point >> 12);
    tail(point >> 6);
    tail(point);
  }
}

// Bytes of the character at the start of `text` (RFC 3629: no overlong forms, no surrogates); 0: none begins there.
std::size_t utf8_length(std::string_view text) noexcept {
  const auto byte = [&text](std::size_t i) -> unsigned {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
  };
  const auto between = [](unsigned value, unsigned low, unsigned high) { return value >= low && value <= high; };
  const auto tail = [&](std::size_t i) { return between(byte(i), 0x80, 0xbf); };
  const unsigned lead = byte(0);
  if (between(lead, 0xc2, 0xdf)) return tail(1) ? 2 : 0;
  if (between(lead, 0xe0, 0xef)) {
    const unsigned low = lead == 0xe0 ? 0xa0 : 0x80;
    const unsigned high = lead == 0xed ? 0x9f : 0xbf;
    return between(byte(1), low, high) && tail(2) ? 3 : 0;
  }
  if (between(lead, 0xf0, 0xf4)) {
    const unsigned low = lead == 0xf0 ? 0x90 : 0x80;
    const unsigned high = lead == 0xf4 ? 0x8f : 0xbf;
    return between(byte(1), low, high) && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

class JsonScan {
 public:
  JsonScan(std::string_view text, JsonEvents& events) noexcept : text_(text), events_(events) {}

  std::optional<std::size_t> run() {
    skip_space();
    bool well = value();
    while (well && !open_.empty()) well = next_in_container();
    if (!well) return at_;
    skip_space();
    return at_ == text_.size() ? std::nullopt : std::optional(at_);
  }

 private:
  char here() const noexcept { return at_ < text_.size() ? text_[at_] : '\0'; }

  bool take(char c) noexcept {
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void skip_space() noexcept {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
      ++at_;
    }
  }

  // A whole value, or the start of a container.
  bool value() {
    switch (here()) {
      case '{':
        return open('}') && events_.start_object();
      case '[':
        return open(']') && events_.start_array();
      case '"':
        return quoted() && events_.string(taken_);
      case 't':
        return word("true") && events_.other();
      case 'f':
        return word("false") && events_.other();
      case 'n':
        return word("null") && events_.other();
      default:
        return number();
    }
  }

  bool open(char end) {
    ++at_;
    open_ += end;
    first_ = true;
    return true;
  }

  // The end of the innermost container, or its next member.
  bool next_in_container() {
    skip_space();
    const bool in_object = open_.back() == '}';
    if (take(open_.back())) {
      open_.pop_back();
      first_ = false;
      return in_object ? events_.end_object() : events_.end_array();
    }
    if (!first_ && !take(',')) return false;
    first_ = false;
    skip_space();
    if (in_object && !member_name()) return false;
    return value();
  }

  bool member_name() {
    if (here() != '"' || !quoted() || !events_.key(taken_)) return false;
    skip_space();
    if (!take(':')) return false;
    skip_space();
    return true;
  }

  bool word(std::string_view expected) noexcept {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  // --- strings -----------------------------------------------------------------------------------------------------

  // From the opening quote to behind the closing one; its meaning is in taken_.
  bool quoted() {
    const std::size_t start = ++at_;
    skip_plain();
    if (here() == '"' && at_ < text_.size()) {
      taken_ = text_.substr(start, at_ - start);
      ++at_;
      return true;
    }
    decoded_.assign(text_.substr(start, at_ - start));
    return quoted_with_escapes();
  }

  void skip_plain() noexcept {
    while (at_ < text_.size() && is_plain(text_[at_])) ++at_;
  }

  bool quoted_with_escapes() {
    while (at_ < text_.size() && text_[at_] != '"') {
      const std::size_t start = at_;
      skip_plain();
      decoded_ += text_.substr(start, at_ - start);
      if (at_ == start && !special()) return false;
    }
    taken_ = decoded_;
    return take('"');
  }

  // An escape, or a character beyond ASCII.
  bool special() {
    if (take('\\')) return escape();
    const std::size_t length = utf8_length(text_.substr(at_, 4));
    decoded_ += text_.substr(at_, length);
    at_ += length;
    return length != 0;
  }

  bool escape() {
    constexpr std::string_view names = "\"\\/bfnrt";
    constexpr std::string_view meanings = "\"\\/\b\f\n\r\t";
    if (take('u')) return escaped_point();
    if (at_ == text_.size()) return false;
    const auto which = names.find(text_[at_]);
    if (which == std::string_view::npos) return false;
    decoded_ += meanings[which];
    ++at_;
    return true;
  }

  // Behind \u. What is not in the first plane is written as two.
  bool escaped_point() {
    std::uint32_t point = 0;
    if (!four_digits(point)) return false;
    const bool high = point >= 0xd800 && point < 0xdc00;
    if (point >= 0xdc00 && point < 0xe000) return false;
    if (high) {
      std::uint32_t low = 0;
      if (!take('\\') || !take('u') || !four_digits(low) || low < 0xdc00 || low >= 0xe000) return false;
      point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(decoded_, point);
    return true;
  }

  bool four_digits(std::uint32_t& value) noexcept {
    const std::string_view digits = text_.substr(at_, 4);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (error != std::errc() || end != digits.data() + 4) return false;
    at_ += 4;
    return true;
  }

  // --- numbers -----------------------------------------------------------------------------------------------------

  bool number() {
    const std::size_t start = at_;
    const bool minus = take('-');
    if (!take('0') && !digits()) return false;
    bool whole = true;
    if (take('.')) {
      whole = false;
      if (!digits()) return false;
    }
    if (take('e') || take('E')) {
      whole = false;
      if (!take('+')) take('-');
      if (!digits()) return false;
    }
    if (!whole) return events_.other();
    return minus ? tell(start, &JsonEvents::negative) : tell(start, &JsonEvents::number);
  }

  bool digits() noexcept {
    const std::size_t start = at_;
    while (at_ < text_.size() && is_digit(text_[at_])) ++at_;
    return at_ != start;
  }

  // One that is too large is a number all the same.
  template <class Integer>
  bool tell(std::size_t start, bool (JsonEvents::*event)(Integer)) {
    Integer value = 0;
    const auto [end, error] = std::from_chars(text_.data() + start, text_.data() + at_, value);
    return error == std::errc() ? (events_.*event)(value) : events_.other();
  }

  std::string_view text_;
  JsonEvents& events_;
  std::size_t at_ = 0;
  std::string open_;    // of each container that is open, innermost last: the character that ends it
  bool first_ = false;  // no member of the innermost one was seen
  std::string_view taken_;
  std::string decoded_;  // of a string that is not written as it is
};

}  // namespace

std::optional<std::size_t> scan_json(std::string_view text, JsonEvents& events) { return JsonScan(text, events).run(); }

}  // namespace migrationd::stream
