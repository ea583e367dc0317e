// SPDX-License-Identifier: Apache-2.0
#include "base/option_words.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;

TEST_CASE("OptionWords.are_none_behind_a_bare_kind") {
  CHECK(option_words("parked").empty());
  CHECK(option_words("").empty());
}

TEST_CASE("OptionWords.are_split_at_the_first_equals_sign") {
  const auto words = option_words("synthetic,ram=1G,log=a=b,bare,,empty=");
  REQUIRE(words.size() == 5);
  CHECK(words[0].key == "ram");
  CHECK(words[0].value == "1G");
  CHECK(words[1].text == "log=a=b");
  CHECK(words[1].key == "log");
  CHECK(words[1].value == "a=b");
  CHECK(words[2].key == "bare");
  CHECK(words[2].key.size() == words[2].text.size());
  CHECK(words[2].value.empty());
  CHECK(words[3].text.empty());
  CHECK(words[4].key == "empty");
  CHECK(words[4].value.empty());
}

TEST_CASE("OptionWords.see_the_empty_word_behind_a_last_comma") { CHECK(option_words("attached,").size() == 1); }
