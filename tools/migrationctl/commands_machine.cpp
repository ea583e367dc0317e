// SPDX-License-Identifier: Apache-2.0
//
// Looking at the machine and its settings, and changing them.
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/doctor.hpp"
#include "tools/migrationctl/progress.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::ctl {

namespace {

// A command's result, or null where the daemon refuses it: for what only adds to the picture.
Result<Json> ask_politely(QmpClient& client, std::string_view command) {
  auto answer = client.execute(command);
  if (!answer && answer.error().kind() == ErrorKind::peer) return Json();
  return answer;
}

void print_machine(const Json& machine) {
  if (!machine.is_object()) return;
  std::string line = machine.value("kind", "unknown");
  if (machine.contains("machine-type")) line += fmt::format(", {}", machine.value("machine-type", ""));
  line += fmt::format(", {} of memory", size_text(machine.value("ram-total", std::uint64_t{0})));
  if (machine.contains("origin")) line += fmt::format(", from {}", machine.value("origin", ""));
  fmt::print("machine    {}\n", line);
  const std::string owner = machine.value("owner", "");
  const char* meaning = owner == "here"      ? "here"
                        : owner == "moved"   ? "moved: the peer has it"
                        : owner == "unknown" ? "unknown: the peer may run it"
                                             : "no machine yet";
  fmt::print("owner      {}\n", meaning);
}

void print_migration(const Json& query, bool incoming) {
  const Sample sample = Sample::from_query(query, incoming);
  if (sample.status == "none") {
    fmt::print("migration  none\n");
  } else if (sample.ended()) {
    // The first column says "migration" already.
    fmt::print("migration  {}\n", outcome(sample).substr(std::string_view("migration ").size()));
  } else {
    fmt::print("migration  {}\n", progress_line(sample, sample.outlook()));
  }
}

std::string plain(const Json& value) {
  if (value.is_boolean()) return value.get<bool>() ? "on" : "off";
  if (value.is_string()) return value.get<std::string>();
  return value.dump();
}

void print_table(const std::vector<std::pair<std::string, std::string>>& rows) {
  std::size_t width = 0;
  for (const auto& [name, value] : rows) width = std::max(width, name.size());
  for (const auto& [name, value] : rows) fmt::print("{:<{}}  {}\n", name, width, value);
}

}  // namespace

Result<int> show_status(QmpClient& client, const Output& output) {
  MD_TRY(const Json run, client.execute("query-status"));
  MD_TRY(const Json query, client.execute("query-migrate"));
  MD_TRY(const Json name, ask_politely(client, "query-name"));
  MD_TRY(const Json machine, ask_politely(client, "__org.migrationd_query-machine"));
  if (output.json) {
    Json all = {{"run", run}, {"migration", query}};
    if (name.is_object()) all["name"] = name.value("name", "");
    if (machine.is_object()) all["machine"] = machine;
    fmt::print("{}\n", all.dump());
    return exit_done;
  }
  if (name.is_object() && name.contains("name")) fmt::print("name       {}\n", name.value("name", ""));
  fmt::print("state      {}\n", run.value("status", "unknown"));
  print_machine(machine);
  print_migration(query, run.value("status", "") == "inmigrate");
  return exit_done;
}

Result<int> capabilities(QmpClient& client, const Output& output, const std::vector<std::string>& changes) {
  Json wanted = Json::array();
  for (const std::string& change : changes) {
    MD_TRY(const auto assignment, split_assignment(change));
    MD_TRY(const bool on, parse_switch(assignment.second));
    wanted.push_back({{"capability", assignment.first}, {"state", on}});
  }
  if (!wanted.empty()) {
    MD_CHECK(client.execute("migrate-set-capabilities", {{"capabilities", wanted}}));
    return exit_done;
  }
  MD_TRY(const Json all, client.execute("query-migrate-capabilities"));
  if (output.json) {
    fmt::print("{}\n", all.dump());
    return exit_done;
  }
  std::vector<std::pair<std::string, std::string>> rows;
  for (const Json& entry : all)
    rows.emplace_back(entry.value("capability", ""), entry.value("state", false) ? "on" : "off");
  print_table(rows);
  return exit_done;
}

Result<int> parameters(QmpClient& client, const Output& output, const std::vector<std::string>& changes) {
  MD_TRY(const Json current, client.execute("query-migrate-parameters"));
  Json wanted = Json::object();
  for (const std::string& change : changes) {
    MD_TRY(const auto assignment, split_assignment(change));
    const auto found = current.find(assignment.first);
    auto value = parse_value(assignment.second, found == current.end() ? nullptr : &*found);
    if (!value) return std::move(value).error().with(assignment.first);
    wanted[assignment.first] = std::move(*value);
  }
  if (!wanted.empty()) {
    MD_CHECK(client.execute("migrate-set-parameters", std::move(wanted)));
    return exit_done;
  }
  if (output.json) {
    fmt::print("{}\n", current.dump());
    return exit_done;
  }
  std::vector<std::pair<std::string, std::string>> rows;
  for (const auto& [name, value] : current.items()) rows.emplace_back(name, plain(value));
  print_table(rows);
  return exit_done;
}

Result<int> stop(QmpClient& client, const Output& output) {
  MD_CHECK(client.execute("stop"));
  if (output.json) fmt::print("{}\n", Json{{"status", "stopped"}}.dump());
  return exit_done;
}

Result<int> cont(QmpClient& client, const Output& output, bool force) {
  MD_TRY(const Json run, client.execute("query-status"));
  MD_TRY(const Json machine, ask_politely(client, "__org.migrationd_query-machine"));
  const std::string owner = machine.is_object() ? machine.value("owner", "") : "";
  const bool moved = owner == "moved" || (owner.empty() && run.value("status", "") == "postmigrate");
  if ((moved || owner == "unknown") && !force) {
    fmt::print(stderr, "migrationctl: {}.\n",
               moved ? "this machine was handed over: the peer has it and may be running it"
                     : "the outcome of the last migration is unknown: the peer may be running this machine");
    fmt::print(stderr,
               "Two running copies of one machine destroy its disks. Make sure that the peer's copy is gone\n"
               "(on its host: migrationctl status), then say `migrationctl cont --force`.\n");
    return exit_needs_force;
  }
  MD_CHECK(client.execute("cont"));
  if (output.json) fmt::print("{}\n", Json{{"status", "continued"}}.dump());
  return exit_done;
}

Result<int> verify_machine(QmpClient& client, const Output& output) {
  MD_TRY(const Json result, client.execute("__org.migrationd_verify-machine"));
  if (output.json || !result.is_object()) {
    fmt::print("{}\n", result.dump());
    return exit_done;
  }
  fmt::print("memory is as the guest's pattern says\n");
  std::vector<std::pair<std::string, std::string>> rows;
  for (const auto& [name, value] : result.items()) rows.emplace_back(name, plain(value));
  print_table(rows);
  return exit_done;
}

Result<int> raw(QmpClient& client, const std::string& command, const std::string& arguments) {
  Json value = arguments.empty() ? Json::object() : Json::parse(arguments, nullptr, false);
  if (!value.is_object()) return plan_error("the arguments must be one JSON object");
  MD_TRY(const Json result, client.execute(command, std::move(value)));
  fmt::print("{}\n", result.dump(2));
  return exit_done;
}

int doctor(const Output& output) {
  const auto findings = judge(probe());
  if (output.json) {
    fmt::print("{}\n", to_json(findings).dump(2));
  } else {
    fmt::print("{}", report(findings));
  }
  const bool missing = std::any_of(findings.begin(), findings.end(),
                                   [](const Finding& finding) { return finding.level == Level::missing; });
  return missing ? exit_missing : exit_done;
}

}  // namespace migrationd::ctl
