// SPDX-License-Identifier: Apache-2.0
//
// The monitor's command lines (qmp.md 12). One row per command: its names, the shape of its arguments, its help, and
// how they become a QMP command's arguments.
#include "protocol/qmp/hmp.hpp"

#include "protocol/qmp/encode.hpp"
#include "protocol/qmp/hmp_words.hpp"
#include "protocol/qmp/parameter_codec.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace migrationd::qmp {

namespace {

// What a row's function gets: the arguments in order (absent optional ones are missing), and the options given.
struct Line {
  std::vector<std::string> words;
  std::string options;

  bool has(char option) const { return options.find(option) != std::string::npos; }
};

HmpPlan command(std::string_view name, Json arguments = Json::object()) {
  HmpCommand out;
  out.command = find_command(name);
  out.arguments = std::move(arguments);
  return out;
}

HmpPlan failed(const QmpError& error) { return HmpText{hmp_outcome({}, &error)}; }

HmpPlan bad_value(std::string_view value) {
  return failed(QmpError(fmt::format("invalid parameter value: {}", value)));
}

template <class C>
HmpPlan plain(const Line&) {
  return command(C::name);
}

HmpPlan migrate(const Line& line) {
  HmpCommand out;
  out.command = find_command(cmd::Migrate::name);
  out.arguments = {{"uri", line.words[0]}, {"resume", line.has('r')}};
  if (!line.has('d')) out.prologue = "terminal does not allow synchronous migration, continuing detached\r\n";
  return out;
}

HmpPlan migrate_cancel(const Line&) {
  HmpCommand out;
  out.command = find_command(cmd::MigrateCancel::name);
  out.hides_error = true;
  return out;
}

HmpPlan migrate_continue(const Line& line) {
  if (!from_name<MigrationStatus>(line.words[0])) return bad_value(line.words[0]);
  return command(cmd::MigrateContinue::name, {{"state", line.words[0]}});
}

HmpPlan migrate_incoming(const Line& line) {
  return command(cmd::MigrateIncoming::name, {{"uri", line.words[0]}, {"exit-on-error", true}});
}

HmpPlan migrate_recover(const Line& line) { return command(cmd::MigrateRecover::name, {{"uri", line.words[0]}}); }

HmpPlan set_capability(const Line& line) {
  if (!from_name<Capability>(line.words[0])) return bad_value(line.words[0]);
  const Json change = {{"capability", line.words[0]}, {"state", line.words[1] == "on"}};
  return command(cmd::MigrateSetCapabilities::name, {{"capabilities", Json::array({change})}});
}

HmpPlan set_parameter(const Line& line) {
  // Checked here for the monitor's own texts; carried out by the QMP command of the same name.
  const auto patch = parse_parameter(line.words[0], std::string_view(line.words[1]));
  if (!patch) return failed(patch.error());
  return command(cmd::MigrateSetParameter::name, {{"parameter", line.words[0]}, {"value", line.words[1]}});
}

template <class C>
HmpPlan fd_name(const Line& line) {
  return command(C::name, {{"fdname", line.words[0]}});
}

HmpPlan announce_self(const Line& line) {
  const MigrationParameters defaults;
  Json arguments = {{"initial", defaults.announce_initial},
                    {"max", defaults.announce_max},
                    {"rounds", defaults.announce_rounds},
                    {"step", defaults.announce_step}};
  if (!line.words.empty()) arguments["interfaces"] = split_commas(line.words[0]);
  if (line.words.size() > 1) arguments["id"] = line.words[1];
  return command(cmd::AnnounceSelf::name, std::move(arguments));
}

HmpPlan object_add(const Line& line) {
  const auto arguments = parse_key_values(line.words[0], "qom-type");
  if (!arguments) return failed(arguments.error());
  return command(cmd::ObjectAdd::name, *arguments);
}

HmpPlan object_del(const Line& line) { return command(cmd::ObjectDel::name, {{"id", line.words[0]}}); }

struct Row {
  std::string_view names;  // "stop|s"
  // One letter per argument: s string, b on/off; small letters after '?' are optional.
  std::string_view arguments;
  std::string_view options;
  std::string_view usage;
  std::string_view help;
  HmpPlan (*plan)(const Line&);  // null: help and info, which parse_hmp knows
};

// Usage and help are what QEMU 10.0.13 answers to `help NAME`, in the order in which its `help` lists them (seen in the
// real program's answers). The text of migrate goes on in a second line; closefd and getfd say their names twice.
constexpr std::array commands{
    Row{"announce_self", "?ss", "", "[interfaces] [id]", "Trigger GARP/RARP announcements", announce_self},
    Row{"closefd", "s", "", "closefd name", "close a file descriptor previously passed via SCM rights",
        fd_name<cmd::Closefd>},
    Row{"cont|c", "", "", "", "resume emulation", plain<cmd::Cont>},
    Row{"getfd", "s", "", "getfd name", "receive a file descriptor via SCM rights and assign it a name",
        fd_name<cmd::Getfd>},
    Row{"help|?", "", "", "[cmd]", "show the help", nullptr},
    Row{"info", "", "", "[subcommand]", "show various information about the system state", nullptr},
    Row{"migrate", "s", "dr", "[-d] [-r] uri",
        "migrate to URI (using -d to not wait for completion)\r\n\t\t\t -r to resume a paused postcopy migration",
        migrate},
    Row{"migrate_cancel", "", "", "", "cancel the current VM migration", migrate_cancel},
    Row{"migrate_continue", "s", "", "state", "Continue migration from the given paused state", migrate_continue},
    Row{"migrate_incoming", "s", "", "uri", "Continue an incoming migration from an -incoming defer", migrate_incoming},
    Row{"migrate_pause", "", "", "", "Pause an ongoing migration (postcopy-only)", plain<cmd::MigratePause>},
    Row{"migrate_recover", "s", "", "uri", "Continue a paused incoming postcopy migration", migrate_recover},
    Row{"migrate_set_capability", "sb", "", "capability state",
        "Enable/Disable the usage of a capability for migration", set_capability},
    Row{"migrate_set_parameter", "ss", "", "parameter value", "Set the parameter for migration", set_parameter},
    Row{"migrate_start_postcopy", "", "", "",
        "Followup to a migration command to switch the migration to postcopy mode. The postcopy-ram capability must be "
        "set on both source and destination before the original migration command .",
        plain<cmd::MigrateStartPostcopy>},
    Row{"object_add", "s", "", "[qom-type=]type,id=str[,prop=value][,...]", "create QOM object", object_add},
    Row{"object_del", "s", "", "id", "destroy QOM object", object_del},
    Row{"quit|q", "", "", "", "quit the emulator", plain<cmd::Quit>},
    Row{"stop|s", "", "", "", "stop emulation", plain<cmd::Stop>},
    Row{"system_powerdown", "", "", "", "send system power down event", plain<cmd::SystemPowerdown>},
    Row{"system_reset", "", "", "", "reset the system", plain<cmd::SystemReset>},
    Row{"system_wakeup", "", "", "", "wakeup guest from suspend", plain<cmd::SystemWakeup>},
};

struct InfoRow {
  std::string_view name;
  std::string_view help;
  HmpInfo info;
};

constexpr std::array info_rows{
    InfoRow{"migrate", "show migration status", HmpInfo::migrate},
    InfoRow{"migrate_capabilities", "show current migration capabilities", HmpInfo::migrate_capabilities},
    InfoRow{"migrate_parameters", "show current migration parameters", HmpInfo::migrate_parameters},
    InfoRow{"name", "show the current VM name", HmpInfo::name},
    InfoRow{"status", "show the current VM status (running|paused)", HmpInfo::status},
    InfoRow{"uuid", "show the current VM UUID", HmpInfo::uuid},
    InfoRow{"version", "show the version of QEMU", HmpInfo::version},
};

std::string_view first_name(const Row& row) { return row.names.substr(0, row.names.find('|')); }

const Row* find_row(std::string_view name) {
  const auto matches = [&](const Row& row) {
    const auto bar = row.names.find('|');
    return name == first_name(row) || (bar != std::string_view::npos && name == row.names.substr(bar + 1));
  };
  const auto found = std::find_if(commands.begin(), commands.end(), matches);
  return found == commands.end() ? nullptr : &*found;
}

const InfoRow* find_info(std::string_view name) {
  const auto found =
      std::find_if(info_rows.begin(), info_rows.end(), [&](const auto& row) { return row.name == name; });
  return found == info_rows.end() ? nullptr : &*found;
}

HmpPlan unknown(std::string_view name) { return HmpText{fmt::format("unknown command: '{}'\r\n", name)}; }

HmpPlan refused(std::string_view problem, std::string_view help_name) {
  return HmpText{fmt::format("{}\r\nTry \"help {}\" for more information\r\n", problem, help_name)};
}

std::string help_line(const Row& row) { return fmt::format("{} {} -- {}\r\n", row.names, row.usage, row.help); }
std::string help_line(const InfoRow& row) { return fmt::format("info {}  -- {}\r\n", row.name, row.help); }

std::string all_help() {
  std::string out;
  for (const auto& row : commands) out += help_line(row);
  return out;
}

std::string all_info_help() {
  std::string out;
  for (const auto& row : info_rows) out += help_line(row);
  return out;
}

// Options in front, then arguments; what is wrong is told in the monitor's words.
HmpPlan run_row(const Row& row, WordReader words) {
  Line line;
  const auto name = row.names;
  const auto help = first_name(row);
  while (!row.options.empty() && words.at_option()) {
    const char option = words.take_option();
    if (option == '\0' || row.options.find(option) == std::string_view::npos)
      return refused(fmt::format("{}: unsupported option -{}", name, option), help);
    line.options += option;
    if (!words.at_blank()) break;
  }
  bool optional = false;
  for (const char kind : row.arguments) {
    if (kind == '?') {
      optional = true;
      continue;
    }
    if (optional && words.at_end()) break;
    const auto word = words.take();
    const bool is_switch = word && (*word == "on" || *word == "off");
    if (kind == 'b' && !is_switch) return refused("Expected 'on' or 'off'", help);
    if (!word) return refused(fmt::format("{}: string expected", name), help);
    line.words.push_back(*word);
  }
  if (!words.at_end()) return refused(fmt::format("{}: extraneous characters at the end of line", name), help);
  return row.plan(line);
}

HmpPlan run_info(WordReader words) {
  const auto topic = words.take();
  if (!topic) return HmpText{all_info_help()};
  const auto* row = find_info(*topic);
  if (row == nullptr) return unknown("info " + *topic);
  if (!words.at_end())
    return refused(fmt::format("{}: extraneous characters at the end of line", row->name),
                   fmt::format("info {}", row->name));
  return row->info;
}

HmpPlan run_help(WordReader words) {
  const auto topic = words.take();
  if (!topic) return HmpText{all_help()};
  if (*topic == "info") {
    const auto subject = words.take();
    if (!subject) return HmpText{all_info_help()};
    if (const auto* row = find_info(*subject)) return HmpText{help_line(*row)};
    return unknown("info " + *subject);
  }
  if (const auto* row = find_row(*topic)) return HmpText{help_line(*row)};
  return unknown(*topic);
}

}  // namespace

HmpPlan parse_hmp(std::string_view line) {
  WordReader words(line);
  const auto name = words.take_name();
  if (name.empty()) return HmpText{};
  if (name == "info") return run_info(words);
  if (name == "help" || name == "?") return run_help(words);
  if (const auto* row = find_row(name)) return run_row(*row, words);
  return unknown(name);
}

std::string hmp_outcome(const HmpCommand& command, const QmpError* error) {
  std::string out = command.prologue;
  if (error == nullptr || command.hides_error) return out;
  out += "Error: ";
  for (const char c : error->text()) {
    if (c == '\n') out += '\r';
    out += c;
  }
  return out + "\r\n";
}

}  // namespace migrationd::qmp
