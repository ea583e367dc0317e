// SPDX-License-Identifier: Apache-2.0
//
// The human monitor's language, as far as it belongs to migration (qmp.md 12): a line is translated into a QMP command
// or a question, and typed values into the monitor's text. Lines end in CR LF.
//
//   HmpPlan plan = parse_hmp(line);
//   text:    answer with it
//   command: run the QMP command with these arguments; answer prologue + (error ? "Error: " + text : "")
//   info:    fetch the values and answer with the info_... function
//
// Thread: pure functions.
#pragma once

#include "protocol/qmp/commands.hpp"

namespace migrationd::qmp {

enum class HmpInfo : std::uint8_t { migrate, migrate_capabilities, migrate_parameters, status, version, name, uuid };

struct HmpText {
  std::string text;
};
struct HmpCommand {
  const CommandInfo* command = nullptr;
  Json arguments = Json::object();
  std::string prologue;      // printed before the outcome
  bool hides_error = false;  // migrate_cancel prints nothing even if refused
};
using HmpPlan = std::variant<HmpText, HmpCommand, HmpInfo>;

HmpPlan parse_hmp(std::string_view line);

// What the monitor prints after an HmpCommand was carried out.
std::string hmp_outcome(const HmpCommand& command, const QmpError* error);

std::string hmp_info_migrate(const MigrationInfo& info);
std::string hmp_info_capabilities(const Capabilities& capabilities);
std::string hmp_info_parameters(const MigrationParameters& parameters);
std::string hmp_info_status(const StatusInfo& status);
std::string hmp_info_version(const VersionInfo& version);
std::string hmp_info_name(const NameInfo& name);
std::string hmp_info_uuid(const UuidInfo& uuid);

// Sizes as the monitor takes them: decimal with optional fraction and a suffix B K M G T P E, or 0x hex; without a
// suffix in units of `default_unit` bytes. Nothing when it is no size.
std::optional<std::uint64_t> parse_size(std::string_view text, std::uint64_t default_unit);

}  // namespace migrationd::qmp
