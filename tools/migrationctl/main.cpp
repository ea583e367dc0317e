// SPDX-License-Identifier: Apache-2.0
//
// migrationctl: the person's tool for migrationd. It talks QMP over the control socket like any other client; what
// it can do, a script can do (docs/man/migrationctl.1).
#include "tools/migrationctl/commands.hpp"

#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <functional>

namespace {

using namespace migrationd;
using namespace migrationd::ctl;

constexpr const char* run_directory = "/run/migrationd";

struct Options {
  std::string socket;
  std::string name;
  Output output;
  MigrateOptions migrate;
  ResumeOptions resume;
  FileOptions file;
  InspectOptions inspect;
  ConvertOptions convert;
  CompareOptions compare;
  UpdateOptions update;
  std::string uri;
  bool wait = false;
  bool force = false;
  std::vector<std::string> changes;
  std::string command;
  std::string arguments;
};

// --socket, -n, MIGRATIOND_SOCKET, or the only daemon there is.
Result<std::string> socket_path(const Options& options) {
  if (!options.socket.empty()) {
    return options.socket.starts_with("unix:") ? options.socket.substr(5) : options.socket;
  }
  if (!options.name.empty()) return fmt::format("{}/{}/qmp.sock", run_directory, options.name);
  if (const char* from_environment = std::getenv("MIGRATIOND_SOCKET")) return std::string(from_environment);
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(run_directory, ignored)) {
    const auto path = entry.path() / "qmp.sock";
    if (std::filesystem::exists(path, ignored)) found.push_back(path);
  }
  if (found.size() == 1) return found.front();
  if (found.empty()) return Error(ErrorKind::io, "no daemon found: give --socket PATH or -n NAME");
  return plan_error(fmt::format("{} daemons run here: give -n NAME", found.size()));
}

using Action = std::function<Result<int>(QmpClient&, const Options&)>;
using FileAction = std::function<Result<int>(const Options&)>;

// The subcommands; the chosen one's action is left in `action`, none for doctor.
void add_commands(CLI::App& app, Options& options, Action& action) {
  const auto command = [&](const char* name, const char* text, Action what) {
    CLI::App* const sub = app.add_subcommand(name, text);
    sub->callback([&action, what = std::move(what)] { action = what; });
    return sub;
  };
  command("status", "the machine, its state, and the latest migration",
          [](QmpClient& client, const Options& o) { return show_status(client, o.output); });
  CLI::App* sub = command("migrate", "move the machine to URI and watch",
                          [](QmpClient& client, const Options& o) { return migrate(client, o.output, o.migrate); });
  sub->add_option("URI", options.migrate.uri,
                  "tcp:HOST:PORT, unix:PATH, vsock:CID:PORT, fd:NAME, exec:COMMAND, "
                  "file:PATH[,offset=N], or an address as JSON")
      ->required();
  sub->add_flag("-d,--detach", options.migrate.detach, "return once it has started");
  auto* const resumes = sub->add_flag("--resume", options.migrate.resume, "go on with a paused postcopy migration");
  sub->add_option(
         "--cpr", options.migrate.cpr,
         "by cpr-transfer to another process of this host, which listens at this UNIX socket: no page is copied")
      ->excludes(resumes);
  sub = command("save", "put the machine into FILE, each page at a fixed place (mapped-ram)",
                [](QmpClient& client, const Options& o) { return save(client, o.output, o.file); });
  sub->add_option("FILE", options.file.path, "written anew; mode 0600")->required();
  sub->add_flag("--direct", options.file.direct, "pages go to the disk directly, past the page cache");
  sub->add_option("--workers", options.file.workers, "threads that write pages, 1 to 255; 1 unless given")
      ->check(CLI::Range(1, 255));
  sub->add_flag("--checksum", options.file.checksum, "then read FILE and write FILE.sums for verify");
  CLI::Option* const xml = sub->add_option("--libvirt", options.file.libvirt_xml,
                                           "write an image for virsh restore, with the domain's XML of this file");
  sub->add_option("--image-format", options.file.image_format, "of such an image; sparse needs libvirt 11.2")
      ->check(CLI::IsMember({"raw", "sparse"}))
      ->capture_default_str()
      ->needs(xml);
  sub = command("load", "take the machine out of FILE",
                [](QmpClient& client, const Options& o) { return load(client, o.output, o.file); });
  sub->add_option("FILE", options.file.path, "what save, QEMU or libvirt (virsh save) wrote")->required();
  sub->add_flag("--direct", options.file.direct, "pages come from the disk directly, past the page cache");
  sub->add_option("--workers", options.file.workers, "threads that read pages, 1 to 255; 1 unless given")
      ->check(CLI::Range(1, 255));
  sub = command("incoming", "take a machine from URI",
                [](QmpClient& client, const Options& o) { return incoming(client, o.output, o.uri, o.wait); });
  sub->add_option("URI", options.uri, "where to listen, or the file to read")->required();
  sub->add_flag("-w,--wait", options.wait, "watch until the machine has arrived");
  sub = command("capabilities", "show capabilities, or switch some",
                [](QmpClient& client, const Options& o) { return capabilities(client, o.output, o.changes); });
  sub->add_option("NAME=on|off", options.changes, "what to switch");
  sub = command("parameters", "show parameters, or set some",
                [](QmpClient& client, const Options& o) { return parameters(client, o.output, o.changes); });
  sub->add_option("NAME=VALUE", options.changes, "what to set; numbers may have a suffix K, M, G or T");
  command("stop", "stop the machine", [](QmpClient& client, const Options& o) { return stop(client, o.output); });
  sub = command("cont", "let the machine run",
                [](QmpClient& client, const Options& o) { return cont(client, o.output, o.force); });
  sub->add_flag("--force", options.force, "even if the machine was handed over: two running copies destroy its disks");
  command("cancel", "end the migration, outgoing or incoming; the machine stays with its source",
          [](QmpClient& client, const Options& o) { return cancel(client, o.output); });
  command("verify-machine", "check the memory of a synthetic machine",
          [](QmpClient& client, const Options& o) { return verify_machine(client, o.output); });
  sub = command("update", "replace the daemon by a new process of its program, under its running machine",
                [](QmpClient& client, const Options& o) { return update(client, o.output, o.update); });
  sub->add_option("--binary", options.update.binary,
                  "go on with this program (else: what stands now where the daemon's was started from)");
  sub->add_option("--timeout", options.update.timeout, "seconds until the new daemon has taken over; 30 unless given")
      ->check(CLI::Range(1, 3600));
  sub = command("qmp", "send one QMP command and print what it returns",
                [](QmpClient& client, const Options& o) { return raw(client, o.command, o.arguments); });
  sub->add_option("COMMAND", options.command, "its name")->required();
  sub->add_option("JSON", options.arguments, "its arguments, an object");
  app.add_subcommand("doctor", "what this host allows, and how to mend what it does not");
}

// Those that look at files and ask no daemon.
void add_file_commands(CLI::App& app, Options& options, FileAction& action) {
  const auto command = [&](const char* name, const char* text, FileAction what) {
    CLI::App* const sub = app.add_subcommand(name, text);
    sub->callback([&action, what = std::move(what)] { action = what; });
    return sub;
  };
  CLI::App* sub = command("inspect", "what a file holds: kind, memory, devices",
                          [](const Options& o) { return inspect(o.output, o.inspect); });
  sub->add_option("FILE", options.inspect.path, "a migration stream, a mapped-ram file or a save image")->required();
  sub->add_flag("--xml", options.inspect.xml, "only the domain's XML of a save image");
  sub->add_flag("--devices", options.inspect.devices, "with the fields of every device");
  sub = command("verify", "whether a file is whole, and still what its checksums say",
                [](const Options& o) { return verify(o.output, o.inspect.path); });
  sub->add_option("FILE", options.inspect.path, "its checksums are looked for in FILE.sums")->required();
  sub = command("convert", "write the machine of a file into a file of another kind",
                [](const Options& o) { return convert(o.output, o.convert); });
  sub->add_option("IN", options.convert.input, "any kind that inspect knows")->required();
  sub->add_option("OUT", options.convert.output, "written anew; mode 0600")->required();
  sub->add_option("--to", options.convert.to, "the kind of OUT")
      ->required()
      ->check(CLI::IsMember({"plain", "mapped-ram", "libvirt-raw", "libvirt-sparse"}));
  sub->add_option("--libvirt", options.convert.libvirt_xml,
                  "for the libvirt kinds: the domain's XML (else that of IN, if it is a save image)");
  sub = command("compare-devices", "whether streams of one version of a program's devices load in another",
                [](const Options& o) { return compare_devices(o.output, o.compare); });
  sub->add_option("OLD", options.compare.older, "device tables as the older version dumped them")->required();
  sub->add_option("NEW", options.compare.newer, "those of the newer one")->required();
  sub->add_option("--only", options.compare.only, "one direction: old-in-new or new-in-old")
      ->check(CLI::IsMember({"old-in-new", "new-in-old"}));
}

// CLI11 says only that a command is missing when there is a word that is none. Empty when that is not what was wrong.
std::string unknown_command(const CLI::App& app) {
  if (!app.get_subcommands().empty()) return {};
  const auto extras = app.remaining();
  const auto word = std::find_if(extras.begin(), extras.end(), [](const auto& one) { return !one.starts_with('-'); });
  if (word == extras.end()) return {};
  std::string names;
  for (const CLI::App* const command : app.get_subcommands([](const CLI::App*) { return true; }))
    names += (names.empty() ? "" : ", ") + command->get_name();
  return fmt::format("unknown command '{}' ({}); --help says more", printable(*word), names);
}

int exit_code(const Error& error) {
  if (error.kind() == ErrorKind::peer) return exit_refused;
  if (error.kind() == ErrorKind::plan) return exit_usage;
  return exit_unreachable;
}

// There is no daemon to be out of reach.
int file_exit_code(const Error& error) { return error.kind() == ErrorKind::plan ? exit_usage : exit_refused; }

Result<int> run(const Options& options, const Action& action) {
  MD_TRY(const std::string path, socket_path(options));
  MD_TRY(QmpClient client, QmpClient::connect(path));
  return action(client, options);
}

void add_resume(CLI::App& app, Options& options, FileAction& action) {
  CLI::App* const sub =
      app.add_subcommand("resume", "run the machine of FILE in a QEMU that listens, before its memory has arrived");
  sub->callback([&action] { action = [](const Options& o) { return resume(o.output, o.resume); }; });
  sub->add_option("FILE", options.resume.path, "a mapped-ram file, a plain stream, or a save image of libvirt")
      ->required();
  sub->add_option("--to", options.resume.to,
                  "where a QEMU with postcopy-ram on listens; repeated: one machine for each")
      ->required()
      ->take_all()
      ->expected(1)
      ->allow_extra_args(false);
  sub->add_option("--clones", options.resume.clones, "so many machines; --to has {} where their number goes")
      ->check(CLI::Range(1u, 1024u));
  sub->add_option("--background", options.resume.background,
                  "bytes per second for what nobody has asked for (K, M, G); 0: on demand only");
  sub->add_option("--page-size", options.resume.page_sizes, "BLOCK=SIZE: pages the destination's memory consists of")
      ->take_all()
      ->expected(1)
      ->allow_extra_args(false);
  sub->add_option("--offset", options.resume.offset, "where the stream begins in the file");
  sub->add_flag("--preempt", options.resume.preempt, "the destination has postcopy-preempt on");
  sub->add_flag("!--no-working-set", options.resume.working_set,
                "keep no FILE.working-set (the order in which pages were asked for), and use none");
  sub->add_flag("--run", options.resume.run, "also if the machine was saved stopped: the destination runs it");
  sub->add_flag("-d,--detach", options.resume.detach, "return once the machines run");
}

void watch_interrupts() {
  struct sigaction handler {};
  handler.sa_handler = [](int) { note_interrupt(); };
  // The second one ends us at once.
  handler.sa_flags = static_cast<int>(SA_RESETHAND);
  ::sigaction(SIGINT, &handler, nullptr);
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  Action action;
  FileAction file_action;
  FileAction resume_action;
  CLI::App app("migrationctl: look at and move the machine of a migrationd");
  app.set_version_flag("--version", "migrationctl " MIGRATIOND_VERSION);
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--socket", options.socket, "the daemon's control socket (else MIGRATIOND_SOCKET)");
  app.add_option("-n,--name", options.name, "the daemon migrationd@NAME: /run/migrationd/NAME/qmp.sock");
  app.add_flag("--json", options.output.json, "print JSON");
  add_commands(app, options, action);
  add_file_commands(app, options, file_action);
  add_resume(app, options, resume_action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (const std::string text = unknown_command(app); error.get_exit_code() != 0 && !text.empty()) {
      fmt::print(stderr, "migrationctl: {}\n", text);
      return exit_usage;
    }
    return app.exit(error) == 0 ? exit_done : exit_usage;
  }
  options.output.terminal = ::isatty(STDOUT_FILENO) == 1;
  if (!action && !file_action && !resume_action) return doctor(options.output);
  if (!file_action) watch_interrupts();
  const auto code = action ? run(options, action) : file_action ? file_action(options) : resume_action(options);
  if (code) return *code;
  fmt::print(stderr, "migrationctl: {}\n", code.error().text());
  return file_action ? file_exit_code(code.error()) : exit_code(code.error());
}
