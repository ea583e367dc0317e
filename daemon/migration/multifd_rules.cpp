// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/multifd_rules.hpp"

#include <charconv>

namespace migrationd::migration {

std::optional<MachineVersion> machine_version(std::string_view machine_type) {
  const std::size_t dash = machine_type.rfind('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const char* const end = machine_type.data() + machine_type.size();
  MachineVersion version;
  const auto major = std::from_chars(machine_type.data() + dash + 1, end, version.first);
  if (major.ec != std::errc() || major.ptr == end || *major.ptr != '.') return std::nullopt;
  const auto minor = std::from_chars(major.ptr + 1, end, version.second);
  if (minor.ec != std::errc() || minor.ptr != end) return std::nullopt;
  return version;
}

MultifdRules multifd_rules(std::string_view machine_type, qmp::ZeroPageDetection wanted) {
  const bool own = machine_type.starts_with("migrationd-");
  const auto version = machine_version(machine_type);
  MultifdRules rules;
  rules.sync_per_section = version && *version <= MachineVersion{8, 0};
  const bool reads_zeros_in_packets = own || (version && *version >= MachineVersion{9, 0});
  if (wanted == qmp::ZeroPageDetection::none) {
    rules.zeros = ram::MultifdZeros::none;
  } else if (wanted == qmp::ZeroPageDetection::legacy || !reads_zeros_in_packets) {
    rules.zeros = ram::MultifdZeros::in_main_stream;
  }
  return rules;
}

}  // namespace migrationd::migration
