// SPDX-License-Identifier: Apache-2.0
//
// compare-devices: do the streams of an old version of a program load in the new one, and the reverse?
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/device_tables.hpp"

#include <fmt/format.h>

namespace migrationd::ctl {

namespace {

constexpr std::string_view loads(Severity worst) {
  return worst == Severity::never ? "no" : worst == Severity::sometimes ? "sometimes" : "yes";
}

Json comparison_json(const Comparison& comparison) {
  Json findings = Json::array();
  for (const TableFinding& finding : comparison.findings) {
    findings.push_back({{"severity", to_name(finding.severity)}, {"device", finding.device}, {"text", finding.text}});
  }
  return {{"loads", loads(comparison.worst())}, {"findings", findings}};
}

void print_comparison(std::string_view title, const Comparison& comparison) {
  fmt::print("{}: {}\n", title, loads(comparison.worst()));
  for (const TableFinding& finding : comparison.findings) {
    fmt::print("  {:<9}  {}: {}\n", to_name(finding.severity), finding.device, finding.text);
  }
}

}  // namespace

Result<int> compare_devices(const Output& output, const CompareOptions& options) {
  MD_TRY(const TableSet older, read_tables(options.older));
  MD_TRY(const TableSet newer, read_tables(options.newer));
  const bool forward = options.only != "new-in-old";
  const bool backward = options.only != "old-in-new";
  const Comparison old_in_new = forward ? compare_tables(older, newer) : Comparison{};
  const Comparison new_in_old = backward ? compare_tables(newer, older) : Comparison{};
  if (output.json) {
    Json out{{"old", options.older}, {"new", options.newer}};
    if (forward) out["old-in-new"] = comparison_json(old_in_new);
    if (backward) out["new-in-old"] = comparison_json(new_in_old);
    fmt::print("{}\n", out.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    if (forward) print_comparison("streams of the old in the new", old_in_new);
    if (backward) print_comparison("streams of the new in the old", new_in_old);
  }
  const bool bad = old_in_new.worst() == Severity::never || new_in_old.worst() == Severity::never;
  return bad ? exit_refused : exit_done;
}

}  // namespace migrationd::ctl
