// SPDX-License-Identifier: Apache-2.0
//
// JSON text (RFC 8259) told as events, for the description at the end of a stream: some 100 KB that are read while the
// guest stands still. It knows nothing of what they mean, keeps none of it, and is several times as fast as the parser
// that builds trees for everything else (docs/performance.md). That one is its measure: both take the same texts and
// tell the same of them (tests/fuzz/description_json_fuzz.cpp).
//
// One thread; work and memory are linear in the text (one byte for each container that is open).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace migrationd::stream {

// false stops the scan. Texts are valid during the call.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual bool start_object() = 0;
  virtual bool key(std::string_view name) = 0;
  virtual bool end_object() = 0;
  virtual bool start_array() = 0;
  virtual bool end_array() = 0;
  virtual bool string(std::string_view value) = 0;
  virtual bool number(std::uint64_t value) = 0;
  // With a minus sign; "-0" is 0.
  virtual bool negative(std::int64_t value) = 0;
  // null, true, false, and numbers that are neither of the above: well-formed, and of no use.
  virtual bool other() = 0;
};

// Nothing when the text is one whole value; else the offset at which it is not, or at which an event said stop.
std::optional<std::size_t> scan_json(std::string_view text, JsonEvents& events);

}  // namespace migrationd::stream
