// SPDX-License-Identifier: Apache-2.0
// A dump of device tables as `migrationctl compare-devices` reads it, compared with itself and, both ways, with a small
// honest one. What is found must be sayable: findings have a device of one of both sides.
#include "tools/migrationctl/device_tables.hpp"

#include <algorithm>
#include <cstdlib>
#include <string_view>

using namespace migrationd;
using namespace migrationd::ctl;

namespace {

constexpr std::string_view honest = R"({"device-tables": 1, "machine": "m", "devices": [
  {"name": "a", "instance_id": 0, "vmsd_name": "a", "version": 2, "minimum_version": 1, "fields": [
    {"name": "x", "type": "uint32", "size": 4}, {"name": "n", "type": "uint8", "size": 1, "since": 2},
    {"name": "v", "type": "uint16", "size": 2, "count": "n", "bound": 8}]}]})";

bool has_device(const TableSet& set, const std::string& id) {
  return std::any_of(set.devices.begin(), set.devices.end(),
                     [&](const TableDevice& device) { return id == shown_device(device); });
}

void compare(const TableSet& writer, const TableSet& reader) {
  const Comparison result = compare_tables(writer, reader);
  for (const TableFinding& finding : result.findings) {
    if (finding.severity > result.worst() || finding.text.empty()) std::abort();
    if (!finding.device.empty() && !has_device(writer, finding.device) && !has_device(reader, finding.device))
      std::abort();
  }
}

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Result<TableSet> known = parse_tables(honest);
  if (!known) std::abort();
  const auto parsed = parse_tables(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!parsed) return 0;
  compare(*parsed, *parsed);
  compare(*parsed, *known);
  compare(*known, *parsed);
  return 0;
}
