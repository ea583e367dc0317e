// SPDX-License-Identifier: Apache-2.0
//
// JSON in and out. The answers in the tables were given by a running QEMU 10.0 (a few by 7.2, which has the same
// parser); see qmp.md section 1 in the project's history, carried over in json_lexer.hpp.
#include "protocol/qmp/json_framer.hpp"
#include "protocol/qmp/json_writer.hpp"
#include "tests/unit/catch.hpp"

#include <string>
#include <vector>

using namespace migrationd;
using namespace migrationd::qmp;
using namespace std::string_literals;

namespace {

std::string show(const Document& document) {
  if (const auto* error = std::get_if<QmpError>(&document.content)) {
    std::string text = error->text();
    constexpr std::string_view prefix = "JSON parse error, ";
    return "!" + (text.starts_with(prefix) ? text.substr(prefix.size()) : text);
  }
  return write_json(std::get<Json>(document.content));
}

std::vector<std::string> feed_in_pieces(JsonFramer& framer, std::string_view input, std::size_t piece) {
  std::vector<std::string> out;
  while (!input.empty()) {
    auto part = input.substr(0, piece);
    input.remove_prefix(part.size());
    while (true) {
      const auto fed = framer.feed(part);
      part.remove_prefix(fed.taken);
      if (!fed.document) break;
      out.push_back(show(*fed.document));
    }
  }
  return out;
}

std::vector<std::string> frame(std::string_view input) {
  JsonFramer whole;
  const auto out = feed_in_pieces(whole, input, input.size());
  // However the bytes are cut, the result is the same.
  for (const std::size_t piece : {1U, 3U}) {
    JsonFramer framer;
    CHECK(feed_in_pieces(framer, input, piece) == out);
  }
  return out;
}

using Answers = std::vector<std::string>;

struct Case {
  std::string input;
  Answers answers;
};

const std::vector<Case> dialect = {
    {R"({'execute':'x'})", {R"({"execute": "x"})"}},
    {R"(["'",'"',"\'",'\"'])", {R"(["'", "\"", "'", "\""])"}},
    {R"(["\"\\\/\b\f\n\r\t\u0041\ud83d\ude00"])", {R"(["\"\\/\b\f\n\r\tA\uD83D\uDE00"])"}},
    {R"(["\x41"])", {"!invalid escape sequence in string"}},
    {"[\"\\\xc3\xa9\"]", {"!invalid escape sequence in string"}},
    {R"(["\u12"])", {R"(!\u12" is not a valid Unicode character)"}},
    {R"(["\u12xyz"])", {R"(!\u12xy is not a valid Unicode character)"}},
    {R"(["\u"])", {R"(!\u" is not a valid Unicode character)"}},
    {R"(["\ud800"])", {R"(!\ud800 is not a valid Unicode character)"}},
    {R"(["\ud800\u0041"])", {R"(!\ud800 is not a valid Unicode character)"}},
    {R"(["\udc00"])", {R"(!\udc00 is not a valid Unicode character)"}},
    {R"(["\ufdd0"])", {R"(!\ufdd0 is not a valid Unicode character)"}},
    {R"(["\ud83f\udffe"])", {R"(!\ud83f\udffe is not a valid Unicode character)"}},
    {R"(["\u0000"])", {R"(["\u0000"])"}},
    {"[\"\xc0\x80\"]", {R"(["\u0000"])"}},
    {"[\"\xc0\xaf\"]", {"!invalid UTF-8 sequence in string"}},
    {"[\"\xed\xa0\x80\"]", {"!invalid UTF-8 sequence in string"}},
    {"[\"\xf5\x80\x80\x80\"]", {"!invalid UTF-8 sequence in string"}},
    {"[\"\xef\xbf\xbe\"]", {"!invalid UTF-8 sequence in string"}},
    {"[\"\xc3\"]", {"!invalid UTF-8 sequence in string"}},
    {"[\"\x7f\xc3\xa9\"]", {R"(["\u007F\u00E9"])"}},
    {"\"a\xff b\"\n", {"!stray '\"a\xff'"}},
    {"[\"a\tb\"]\n", {"!stray '\"a\t'", "!expecting value"}},
    {"/* c */\n", {"!stray '/'"}},
    {"# c\n[]", {"!stray '#'", "[]"}},
    {"\xef\xbb\xbf[]", {"!stray '\xef'", "[]"}},
    {"[1,]", {"!expecting value"}},
    {R"({"a":1,})", {"!expecting value"}},
    {R"({"a":1 "b":2})", {"!expected separator in dict"}},
    {"[1 2]", {"!expected separator in list"}},
    {R"({"a" 1})", {"!missing : in object pair"}},
    {"{execute:1}", {"!invalid keyword 'execute'"}},
    {"{1:2}", {"!key is not a string in object"}},
    {"{[]:2}", {"!key is not a string in object"}},
    {R"({"a":1,"a":2})", {"!duplicate key"}},
    {R"([{"b":{"a":1,"a":2}}])", {"!duplicate key"}},
    {R"({"execute":})", {"!expecting value"}},
    {"NaN\n", {"!stray 'N'"}},
    {"[True]", {"!stray 'T'", "!expecting value"}},
    {"nul\n", {"!invalid keyword 'nul'"}},
    {"[01]", {"!stray '01'", "!expecting value"}},
    {"+1\n", {"!stray '+'"}},
    {".5\n", {"!stray '.'"}},
    {R"({"a":1.})", {"!stray '1.}'"}},
    {R"({"a":-})", {"!stray '-}'"}},
    {"[1e]", {"!stray '1e]'"}},
    {"[1e+]", {"!stray '1e+]'"}},
    {R"({"a":0x10})", {"!expected separator in dict"}},
    {"[1}", {"!expected separator in list"}},
    {"{]", {"!expecting value"}},
    {"[{]}", {"!expecting value"}},
    {"}", {"!expecting value"}},
    {"]", {"!expecting value"}},
    {"%d\n", {"!stray '%'"}},
    {"12 ", {"12"}},
    {"12}", {"12", "!expecting value"}},
    {"\"s\"", {"\"s\""}},
    {"null\n", {"null"}},
    {R"({"a":+1})", {"!stray '+'", "!expecting value"}},
    {"\x01", {"!stray '\x01'"}},
    {"\0"s, {"!stray ''"}},
    {"\"ab\0c\"\n"s, {"!stray '\"ab'"}},
    {"\xff", {"!stray '\xff'"}},
    {"-\n[]", {"!stray '-\n'", "[]"}},
    {" \t\r\n[ ]\r\n{ } ", {"[]", "{}"}},
};

}  // namespace

TEST_CASE("JsonFramer.answers_each_input_as_qemu_does") {
  for (const auto& row : dialect) {
    INFO(row.input);
    CHECK(frame(row.input) == row.answers);
  }
}

TEST_CASE("JsonFramer.gives_six_errors_for_a_minus_before_a_list") {
  // -[ aborts, 1 is skipped, then "," 2 "," 3 "]": numbers alone are documents, which the session refuses.
  CHECK(frame("-[1,2,3]") ==
        Answers{"!stray '-['", "!expecting value", "2", "!expecting value", "3", "!expecting value"});
}

TEST_CASE("JsonFramer.keeps_integers_exactly_and_doubles_with_17_digits") {
  CHECK(frame("[-9223372036854775808,18446744073709551615,0.1,1.0,1E3,-0]") ==
        Answers{"[-9223372036854775808, 18446744073709551615, 0.10000000000000001, 1, 1000, 0]"});
  CHECK(frame("[99999999999999999999999,-9223372036854775809,1e-400,-0.0,1e16,1e17]") ==
        Answers{"[9.9999999999999992e+22, -9.2233720368547758e+18, 0, -0, 10000000000000000, 1e+17]"});
  CHECK(frame("[1e400]") == Answers{"!number out of range"});
}

TEST_CASE("JsonFramer.accepts_1024_levels_and_refuses_1025") {
  const std::string deep(1024, '[');
  const auto accepted = frame(deep + std::string(1024, ']'));
  REQUIRE(accepted.size() == 1);
  CHECK(accepted[0][0] == '[');
  const auto refused = frame("[" + deep + std::string(1025, ']'));
  REQUIRE(refused.size() == 1026);
  CHECK(refused[0] == "!JSON nesting depth limit exceeded");
  CHECK(refused[1] == "!expecting value");
  CHECK(refused[1025] == "!expecting value");
  // Braces and brackets count together.
  std::string mixed;
  for (int i = 0; i < 513; ++i) mixed += R"([{"a":)";
  CHECK(frame(mixed).front() == "!JSON nesting depth limit exceeded");
}

TEST_CASE("JsonFramer.bounds_the_size_of_a_document_and_recovers") {
  const std::string long_string(100, 'x');
  JsonFramer framer(64);
  const auto out = feed_in_pieces(framer, "[\"" + long_string + "\"]\n{\"a\": 1}\n", 7);
  REQUIRE(out.size() == 3);
  CHECK(out[0] == "!JSON token size limit exceeded");
  CHECK(out[1] == "!expecting value");  // the bracket that is left over
  CHECK(out[2] == R"({"a": 1})");
  JsonFramer many(16);
  const auto errors = feed_in_pieces(many, "[1,2,3,4,5,6,7,8,9]\n[]", 1);
  CHECK(errors.front() == "!JSON token size limit exceeded");
  CHECK(errors.back() == "[]");
}

TEST_CASE("JsonFramer.tells_at_which_byte_a_document_ended") {
  JsonFramer framer;
  std::string_view input = " {\"a\":1}\r\n [] 7 ";
  std::vector<std::uint64_t> ends;
  while (true) {
    const auto fed = framer.feed(input);
    input.remove_prefix(fed.taken);
    if (!fed.document) break;
    ends.push_back(fed.document->end);
  }
  CHECK(ends == std::vector<std::uint64_t>{8, 13, 16});
  CHECK(framer.position() == 16);
  CHECK_FALSE(framer.in_document());
  CHECK_FALSE(framer.feed("{\"half").document);
  CHECK(framer.in_document());
}

TEST_CASE("JsonWriter.writes_one_ascii_line_as_qemu_does") {
  OrderedJson message{{"z", 1}, {"a", {1, "two", nullptr, true}}, {"e", OrderedJson::object()}};
  CHECK(write_line(message) == "{\"z\": 1, \"a\": [1, \"two\", null, true], \"e\": {}}\r\n");
  CHECK(write_json(OrderedJson("\b\f\n\r\t\x01/\x7f\"\\")) == R"("\b\f\n\r\t\u0001/\u007F\"\\")");
  CHECK(write_json(OrderedJson("\xc3\xa9 \xf0\x9f\x98\x80 \xff\xc3")) == R"("\u00E9 \uD83D\uDE00 \uFFFD\uFFFD")");
}

TEST_CASE("JsonWriter.never_writes_what_is_no_json_number") {
  CHECK(write_json(OrderedJson(std::numeric_limits<double>::infinity())) == "1.7976931348623157e+308");
  CHECK(write_json(OrderedJson(-std::numeric_limits<double>::infinity())) == "-1.7976931348623157e+308");
  CHECK(write_json(OrderedJson(std::numeric_limits<double>::quiet_NaN())) == "0");
  CHECK(write_json(OrderedJson(195.9813017421603)) == "195.9813017421603");
}
