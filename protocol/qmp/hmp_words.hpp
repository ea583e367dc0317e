// SPDX-License-Identifier: Apache-2.0
//
// The words of a monitor line: separated by blanks (a newline is one), "..." quotes one, with \n \r \\ \' \" inside.
//
// Thread: pure.
#pragma once

#include "protocol/qmp/error.hpp"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::qmp {

class WordReader {
 public:
  explicit WordReader(std::string_view line) : rest_(line) {}

  // Letters, digits, '_', '-', '?', '.': a command's name. Empty at the end.
  std::string take_name();
  // The next word; nothing at the end, or when a quote is not closed.
  std::optional<std::string> take();
  bool at_end();
  bool at_blank() const;
  // "-x" with something behind the dash.
  bool at_option();
  char take_option();

 private:
  void skip_blanks();

  std::string_view rest_;
};

// "a,b" to a JSON list.
Json split_commas(std::string_view text);

// "first,key=value,list.0.member=value" to an object; a first part without '=' is `implied`'s value. ",," is a comma
// in a value. Values stay strings, except that those of known switches become booleans.
QmpResult<Json> parse_key_values(std::string_view text, std::string_view implied);

}  // namespace migrationd::qmp
