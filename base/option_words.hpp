// SPDX-License-Identifier: Apache-2.0
//
// The words of an option of the command line such as `--machine KIND,key=value,key=value`.
#pragma once

#include <string_view>
#include <vector>

namespace migrationd {

struct OptionWord {
  std::string_view text;   // the whole word
  std::string_view key;    // before its first '='; all of it if there is none
  std::string_view value;  // behind it; empty if there is none
};

// What stands behind the first comma, word by word, empty ones too. The views are of `text`.
std::vector<OptionWord> option_words(std::string_view text);

}  // namespace migrationd
