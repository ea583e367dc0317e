// SPDX-License-Identifier: Apache-2.0
#include "daemon/options.hpp"

#include "base/thread_roster.hpp"
#include "daemon/incoming_words.hpp"
#include "daemon/machine/synthetic_devices.hpp"
#include "daemon/version.hpp"

#include <CLI/CLI.hpp>

#include <algorithm>
#include <charconv>

namespace migrationd {
namespace {

constexpr const char* qmp_text = "control socket: unix:PATH[,mode=OCTAL][,group=NAME]; may be given several times";
constexpr const char* incoming_text =
    "receive a machine: defer (wait for migrate-incoming), a URI, or a MigrationChannel as JSON or KEY=VALUE,...; "
    "twice "
    "for cpr-transfer, main and cpr channel";
constexpr const char* machine_text =
    "parked[,memory=BLOCK:PATH] (default), or "
    "synthetic[,ram=SIZE][,page-size=4K|2M][,dirty-rate=SIZE][,working-set=SIZE]"
    "[,touched=SIZE][,threads=N][,seed=N][,log=PATH][,dirty-log=auto|async|sync][,prealloc=on|off]"
    "[,blocked=REASON]"
    ", or attached,socket=PATH[,mode=OCTAL][,group=NAME][,uid=N][,deadline=MS]";

struct Words {
  std::vector<std::string> qmp;
  std::vector<std::string> incoming;
  std::string machine = "parked";
  std::string uuid;
  std::string name;
  std::string allow_exec = "on";
  std::string worker_cpus;
  bool dump_devices = false;
  int take_over = -1;
};

Result<void> take_machine(const std::string& word, DaemonOptions& options) {
  const std::string kind = word.substr(0, word.find(','));
  if (kind == "synthetic") {
    auto synthetic = parse_synthetic_options(word);
    if (!synthetic) return std::move(synthetic).error().with("--machine");
    options.synthetic = std::move(*synthetic);
    return {};
  }
  if (kind == "attached") {
    auto attached = parse_attached_options(word);
    if (!attached) return std::move(attached).error().with("--machine");
    options.attached = std::move(*attached);
    return {};
  }
  if (kind != "parked")
    return plan_error("--machine: '" + printable(kind) + "' is none of parked, synthetic and attached");
  auto files = parse_parked_options(word);
  if (!files) return std::move(files).error().with("--machine");
  options.memory_files = std::move(*files);
  return {};
}

Result<void> take_words(const Words& words, DaemonOptions& options) {
  for (const std::string& word : words.qmp) {
    MD_TRY(auto socket, parse_qmp_socket(word));
    options.qmp.push_back(std::move(socket));
  }
  MD_TRY(IncomingWords incoming, parse_incoming(words.incoming));
  options.waits = incoming.waits;
  options.incoming = std::move(incoming.main);
  options.incoming_cpr = std::move(incoming.cpr);
  MD_CHECK(take_machine(words.machine, options));
  if (!words.uuid.empty()) {
    MD_TRY(options.uuid, parse_uuid(words.uuid));
    options.uuid_text = words.uuid;
    std::transform(words.uuid.begin(), words.uuid.end(), options.uuid_text->begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  }
  if (!words.name.empty()) options.name = words.name;
  if (words.allow_exec != "on" && words.allow_exec != "off") {
    return plan_error("--allow-exec: 'on' or 'off', not '" + printable(words.allow_exec) + "'");
  }
  options.allow_exec = words.allow_exec == "on";
  if (words.take_over >= 0) options.take_over = words.take_over;
  if (!words.worker_cpus.empty()) {
    auto cpus = parse_cpu_list(words.worker_cpus);
    if (!cpus) return std::move(cpus).error().with("--worker-cpus");
    options.worker_cpus = std::move(*cpus);
  }
  return {};
}

}  // namespace

Result<ParsedOptions> parse_options(int argc, const char* const* argv) {
  ParsedOptions parsed;
  DaemonOptions& options = parsed.options;
  Words words;
  CLI::App app("migrationd: holds one machine and migrates it, driven over QMP, in QEMU's formats", "migrationd");
  app.add_option("--qmp", words.qmp, qmp_text)->expected(1)->take_all()->allow_extra_args(false);
  app.add_option("--incoming", words.incoming, incoming_text)->expected(1)->take_all()->allow_extra_args(false);
  app.add_option("--machine", words.machine, machine_text);
  app.add_flag("--paused", options.paused, "do not start the guest (as QEMU's -S); 'cont' does");
  app.add_option("--name", words.name, "name for query-name and the log");
  app.add_option("--uuid", words.uuid, "the machine's UUID; checked with the capability validate-uuid");
  app.add_option("--log-level", options.log_level, "trace, debug, info, warning, error or off");
  app.add_option("--allow-exec", words.allow_exec, "on (default) or off: whether exec: addresses may run commands");
  app.add_option("--worker-cpus", words.worker_cpus,
                 "CPUs for the threads that move pages, one each in turn: 2-5,8 (default: wherever the kernel likes)");
  app.add_flag("--dump-devices", words.dump_devices,
               "print the synthetic machine's device tables for 'migrationctl compare-devices', and end");
  // Written by the daemon that starts us to replace it (__org.migrationd_update); nobody else has that channel.
  app.add_option("--take-over", words.take_over, "internal: the descriptor of a daemon that this one replaces")
      ->check(CLI::Range(3, 1 << 20))
      ->group("");
  app.set_version_flag("--version", "migrationd " + std::string(version));
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& wanted) {  // --help, --version
    std::ostringstream out;
    app.exit(wanted, out, out);
    parsed.print = out.str();
    return parsed;
  } catch (const CLI::ParseError& error) {
    return plan_error(error.what());
  }
  MD_CHECK(take_words(words, options));
  if (words.dump_devices) {
    MD_TRY(parsed.print, synthetic::dump_device_tables());
  }
  return parsed;
}

Result<control::SocketOptions> parse_qmp_socket(std::string_view text) {
  constexpr std::string_view scheme = "unix:";
  if (!text.starts_with(scheme)) {
    return plan_error("--qmp: '" + printable(text) + "' is not unix:PATH; other sockets are not offered");
  }
  text.remove_prefix(scheme.size());
  control::SocketOptions options;
  const auto comma = text.find(',');
  options.path = text.substr(0, comma);
  if (options.path.empty()) return plan_error("--qmp: the path is empty");
  while (!text.empty() && text.find(',') != std::string_view::npos) {
    text.remove_prefix(text.find(',') + 1);
    const std::string_view word = text.substr(0, text.find(','));
    if (word.starts_with("mode=")) {
      unsigned mode = 0;
      const auto digits = word.substr(5);
      const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), mode, 8);
      if (failure != std::errc() || end != digits.data() + digits.size() || mode > 0777) {
        return plan_error("--qmp: mode '" + printable(digits) + "' is not an octal mode such as 0660");
      }
      options.mode = static_cast<mode_t>(mode);
    } else if (word.starts_with("group=")) {
      options.group = std::string(word.substr(6));
    } else if (word != "server" && word != "server=on" && word != "wait=off" && word != "nowait") {
      return plan_error("--qmp: '" + printable(word) + "' is not an option (mode=OCTAL, group=NAME)");
    }
  }
  return options;
}

Result<stream::Uuid> parse_uuid(std::string_view text) {
  const auto wrong = [&] { return plan_error("--uuid: '" + printable(text) + "' is not a UUID"); };
  if (text.size() != 36) return wrong();
  stream::Uuid uuid{};
  std::size_t filled = 0;
  for (std::size_t i = 0; i < text.size();) {
    if (i == 8 || i == 13 || i == 18 || i == 23) {
      if (text[i++] != '-') return wrong();
      continue;
    }
    unsigned value = 0;
    const auto [end, failure] = std::from_chars(text.data() + i, text.data() + i + 2, value, 16);
    if (failure != std::errc() || end != text.data() + i + 2) return wrong();
    uuid[filled++] = static_cast<std::byte>(value);
    i += 2;
  }
  return uuid;
}

}  // namespace migrationd
