// SPDX-License-Identifier: Apache-2.0
//
// What two JSON readers tell of a text, as one line each: ours and nlohmann's, which is its measure.
#pragma once

#include "protocol/stream/json_scan.hpp"

#include <nlohmann/json.hpp>

#include <optional>
#include <string>
#include <string_view>

namespace migrationd::stream {

class EventLine final : public JsonEvents {
 public:
  bool start_object() override { return add("{"); }
  bool key(std::string_view name) override { return add("k", name); }
  bool end_object() override { return add("}"); }
  bool start_array() override { return add("["); }
  bool end_array() override { return add("]"); }
  bool string(std::string_view value) override { return add("s", value); }
  bool number(std::uint64_t value) override { return add("n", std::to_string(value)); }
  bool negative(std::int64_t value) override { return add("m", std::to_string(value)); }
  bool other() override { return add("o"); }

  std::string line;

 private:
  bool add(std::string_view what, std::string_view value = {}) {
    line.append(what).append(std::to_string(value.size())).append(":").append(value);
    return true;
  }
};

// nlohmann's names for the same events.
class ReferenceLine final : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return events.other(); }
  bool boolean(bool) override { return events.other(); }
  bool number_integer(number_integer_t value) override { return events.negative(value); }
  bool number_unsigned(number_unsigned_t value) override { return events.number(value); }
  bool number_float(number_float_t, const string_t&) override { return events.other(); }
  bool string(string_t& value) override { return events.string(value); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return events.start_object(); }
  bool key(string_t& name) override { return events.key(name); }
  bool end_object() override { return events.end_object(); }
  bool start_array(std::size_t) override { return events.start_array(); }
  bool end_array() override { return events.end_array(); }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception& error) override {
    too_large = error.id == 406;
    return false;
  }

  EventLine events;
  // A number beyond any double: well-formed for RFC 8259 and for us.
  bool too_large = false;
};

// Nothing: refused.
inline std::optional<std::string> told_by_scan(std::string_view text) {
  EventLine events;
  if (scan_json(text, events)) return std::nullopt;
  return events.line;
}

struct ReferenceAnswer {
  std::optional<std::string> told;
  bool too_large = false;
};
inline ReferenceAnswer told_by_reference(std::string_view text) {
  ReferenceLine reference;
  const bool whole = nlohmann::json::sax_parse(text.begin(), text.end(), &reference);
  if (!whole) return {std::nullopt, reference.too_large};
  return {std::move(reference.events.line), false};
}

}  // namespace migrationd::stream
