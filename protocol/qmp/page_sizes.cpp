// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/hmp.hpp"
#include "protocol/qmp/parameters.hpp"

#include <fmt/format.h>

#include <bit>

namespace migrationd::qmp {

namespace {
constexpr std::uint64_t smallest = 8192;
constexpr std::uint64_t largest = std::uint64_t{1} << 30;
}  // namespace

QmpResult<std::vector<std::pair<std::string, std::uint64_t>>> parse_page_sizes(std::string_view text) {
  std::vector<std::pair<std::string, std::uint64_t>> out;
  while (!text.empty()) {
    const std::string_view entry = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), entry.size() + 1));
    // The last one: names may hold anything else.
    const std::size_t equals = entry.rfind('=');
    const auto size = equals == std::string_view::npos ? std::nullopt : parse_size(entry.substr(equals + 1), 1);
    if (equals == 0 || !size || !std::has_single_bit(*size) || *size < smallest || *size > largest) {
      return QmpError(
          fmt::format("Page sizes: '{}' is not BLOCK=SIZE with a power of two from 8K to 1G", printable(entry)));
    }
    out.emplace_back(entry.substr(0, equals), *size);
  }
  return out;
}

}  // namespace migrationd::qmp
