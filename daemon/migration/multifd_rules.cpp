// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/multifd_rules.hpp"

#include <charconv>
#include <optional>
#include <utility>

namespace migrationd::migration {
namespace {

using Version = std::pair<unsigned, unsigned>;

// Of "pc-i440fx-10.0"; nothing for "microvm", "pc-q35-rhel9.6.0".
std::optional<Version> version_of(std::string_view machine_type) {
  const std::size_t dash = machine_type.rfind('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const char* const end = machine_type.data() + machine_type.size();
  Version version;
  const auto major = std::from_chars(machine_type.data() + dash + 1, end, version.first);
  if (major.ec != std::errc() || major.ptr == end || *major.ptr != '.') return std::nullopt;
  const auto minor = std::from_chars(major.ptr + 1, end, version.second);
  if (minor.ec != std::errc() || minor.ptr != end) return std::nullopt;
  return version;
}

}  // namespace

MultifdRules multifd_rules(std::string_view machine_type, qmp::ZeroPageDetection wanted) {
  const bool own = machine_type.starts_with("migrationd-");
  const auto version = version_of(machine_type);
  MultifdRules rules;
  rules.sync_per_section = version && *version <= Version{8, 0};
  const bool reads_zeros_in_packets = own || (version && *version >= Version{9, 0});
  if (wanted == qmp::ZeroPageDetection::none) {
    rules.zeros = ram::MultifdZeros::none;
  } else if (wanted == qmp::ZeroPageDetection::legacy || !reads_zeros_in_packets) {
    rules.zeros = ram::MultifdZeros::in_main_stream;
  }
  return rules;
}

}  // namespace migrationd::migration
