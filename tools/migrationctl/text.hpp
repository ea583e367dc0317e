// SPDX-License-Identifier: Apache-2.0
//
// How migrationctl writes numbers for people, and reads theirs. Pure.
#pragma once

#include "base/result.hpp"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <string_view>

namespace migrationd::ctl {

using Json = nlohmann::ordered_json;

// "0 B", "1.50 KiB", "12.3 GiB": three digits that count.
std::string size_text(std::uint64_t bytes);
// "350 ms", "12.4 s", "3 min 20 s", "2 h 5 min".
std::string duration_text(std::uint64_t milliseconds);
// "12", "64M", "1.5G", "0x1000": a size or plain number.
Result<std::uint64_t> parse_number(std::string_view text);
// NAME=VALUE; error names the argument.
Result<std::pair<std::string, std::string>> split_assignment(std::string_view text);
// "on", "off", "true", "false", "yes", "no".
Result<bool> parse_switch(std::string_view text);
// `text` as a value of the kind that `current` has (a switch, a number or a string); without a current value JSON
// if it is JSON, else a string.
Result<Json> parse_value(std::string_view text, const Json* current);

}  // namespace migrationd::ctl
