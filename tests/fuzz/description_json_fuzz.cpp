// SPDX-License-Identifier: Apache-2.0
// The description's JSON: our reader and nlohmann's take the same texts and tell the same of them; and the tree that is
// made of it never fails but with a reason.
#include "protocol/stream/vmdescription.hpp"
#include "tests/unit/protocol/json_tellers.hpp"

#include <cstdlib>

using namespace migrationd::stream;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  // nlohmann passes over a byte order mark, and takes a zero byte for the end. A stream's description has neither.
  if (text.starts_with("\xef\xbb\xbf") || text.find('\0') != std::string_view::npos) return 0;
  const auto reference = told_by_reference(text);
  if (!reference.too_large && told_by_scan(text) != reference.told) std::abort();
  const auto description = parse_description(text);
  if (description && !told_by_scan(text)) std::abort();
  if (!description && description.error().text().empty()) std::abort();
  return 0;
}
