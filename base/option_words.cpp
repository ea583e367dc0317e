// SPDX-License-Identifier: Apache-2.0
#include "base/option_words.hpp"

#include <algorithm>

namespace migrationd {

std::vector<OptionWord> option_words(std::string_view text) {
  std::vector<OptionWord> words;
  text.remove_prefix(std::min(text.find(','), text.size()));
  while (!text.empty()) {
    text.remove_prefix(1);
    const std::string_view word = text.substr(0, text.find(','));
    text.remove_prefix(word.size());
    const auto equals = std::min(word.find('='), word.size());
    words.push_back({word, word.substr(0, equals), word.substr(std::min(equals + 1, word.size()))});
  }
  return words;
}

}  // namespace migrationd
