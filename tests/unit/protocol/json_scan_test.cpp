// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/json_scan.hpp"

#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/json_tellers.hpp"
#include "tests/unit/protocol/stream_fixture.hpp"

#include <string>
#include <vector>

using namespace migrationd;
using namespace migrationd::stream;

TEST_CASE("JsonScan.tells_what_the_reference_tells") {
  const std::vector<std::string> texts = {
      R"({"a": 1, "b": [true, false, null, -7, 0, -0, 1.5, 1e9, 2E-3], "c": {}})",
      R"([])",
      R"(  [ [ ] , { "" : "" } ]  )",
      "\t\r\n 12 \n",
      R"("\"\\\/\b\f\n\r\t\u0041\u00e9\u20ac\ud83d\ude00\u0000")",
      "\"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80 \xed\x9f\xbf \xee\x80\x80 \xf4\x8f\xbf\xbf\"",
      "18446744073709551615",
      "18446744073709551616",
      "-9223372036854775808",
      "-9223372036854775809",
      "0.1e+1",
      "\"\x7f\"",
  };
  for (const std::string& text : texts) {
    INFO(text);
    const auto reference = told_by_reference(text);
    REQUIRE(reference.told.has_value());
    CHECK(told_by_scan(text) == reference.told);
  }
}

TEST_CASE("JsonScan.refuses_what_the_reference_refuses") {
  const std::vector<std::string> texts = {
      "",
      " ",
      "{",
      "[",
      "]",
      "}",
      "{]",
      "[}",
      "[1,]",
      "[,1]",
      "[1 2]",
      "[1,,2]",
      "{,}",
      R"({"a"})",
      R"({"a":})",
      R"({"a":1,})",
      R"({"a" 1})",
      R"({1:2})",
      R"({"a":1 "b":2})",
      "1 2",
      "[] []",
      "tru",
      "True",
      "nul",
      "nulll",
      "-",
      "+1",
      "01",
      "-01",
      "1.",
      ".5",
      "1e",
      "1e+",
      "0x10",
      "--1",
      "'a'",
      "\"",
      "\"a",
      "\"\\\"",
      "\"\\x\"",
      "\"\\u12\"",
      "\"\\u12g4\"",
      "\"\\u-123\"",
      "\"\\ud800\"",
      "\"\\ud800x\"",
      "\"\\ud800\\n\"",
      "\"\\ud800\\u0041\"",
      "\"\\udc00\"",
      "\"\n\"",
      "\"\x01\"",
      "\"\x80\"",
      "\"\xc1\xbf\"",
      "\"\xc3\"",
      "\"\xe0\x9f\xbf\"",
      "\"\xed\xa0\x80\"",
      "\"\xe2\x82\"",
      "\"\xf0\x8f\xbf\xbf\"",
      "\"\xf4\x90\x80\x80\"",
      "\"\xf5\x80\x80\x80\"",
      "\"\xff\"",
      "// no\n1",
      "/*no*/1",
      "\v1",
      std::string("\"\0\"", 3),
      std::string("\0", 1),
      std::string(1000, '['),
  };
  for (const std::string& text : texts) {
    INFO(text);
    CHECK_FALSE(told_by_reference(text).told.has_value());
    CHECK_FALSE(told_by_scan(text).has_value());
  }
}

TEST_CASE("JsonScan.says_where_it_stopped") {
  EventLine events;
  CHECK(scan_json("[1, x]", events) == 4);
  CHECK(scan_json("[1] 2", events) == 4);
  CHECK(scan_json("[1", events) == 2);
  // To the reference a zero byte behind a value is the end of the text.
  CHECK(scan_json(std::string_view("1\0", 2), events) == 1);
  CHECK(scan_json("[1]\n", events) == std::nullopt);
}

TEST_CASE("JsonScan.stops_when_an_event_says_so") {
  class Stopping final : public JsonEvents {
   public:
    bool start_object() override { return true; }
    bool key(std::string_view name) override { return name != "b"; }
    bool end_object() override { return ++ends < 1; }
    bool start_array() override { return false; }
    bool end_array() override { return true; }
    bool string(std::string_view) override { return true; }
    bool number(std::uint64_t) override { return true; }
    bool negative(std::int64_t) override { return false; }
    bool other() override { return true; }
    int ends = 0;
  };
  for (const char* text : {R"({"a":1,"b":2})", R"({"a":[]})", R"({"a":-1})", R"({"a":{}})"}) {
    INFO(text);
    Stopping events;
    CHECK(scan_json(text, events).has_value());
  }
}

TEST_CASE("JsonScan.tells_qemus_descriptions_as_the_reference_does") {
  for (const char* name : {"qemu-7.2-pc.gz", "devices-7.2-q35.tail.gz", "devices-10.0-pc.tail.gz"}) {
    INFO(name);
    const Bytes tail = test::fixture(name);
    const std::string_view all = as_text(tail);
    const std::string_view text = all.substr(all.rfind('\0') + 1);
    const std::string_view json = text.substr(text.find('{'));
    const auto reference = told_by_reference(json);
    REQUIRE(reference.told.has_value());
    CHECK(reference.told->size() > 50000);
    CHECK(told_by_scan(json) == reference.told);
  }
}
