// SPDX-License-Identifier: Apache-2.0
//
// migrationd: one process, one machine.
//
// main() is the list of what a start does; each step is a function that says what went wrong. After it the process is
// the event loop: control sessions, signals, and what the mover threads post (docs/architecture.md, "Threads and
// ownership").
#include "base/log.hpp"
#include "daemon/control/control_server.hpp"
#include "daemon/control/event_bus.hpp"
#include "daemon/control/event_loop.hpp"
#include "daemon/machine/guest_record.hpp"
#include "daemon/machine/synthetic.hpp"
#include "daemon/migration/daemon_service.hpp"
#include "daemon/options.hpp"
#include "daemon/service.hpp"
#include "daemon/update/inheritance.hpp"
#include "daemon/update/updater.hpp"
#include "daemon/version.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace migrationd {
namespace {

constexpr int usage_status = 2;

// Descriptors that were open before we opened any: what `fd:NUMBER` may name (qmp.md section 7).
std::vector<int> inherited_descriptors() {
  std::vector<int> inherited;
  DIR* const directory = ::opendir("/proc/self/fd");
  if (directory == nullptr) return inherited;
  while (const dirent* const entry = ::readdir(directory)) {
    const int fd = std::atoi(entry->d_name);
    if (fd > 2 && fd != ::dirfd(directory)) inherited.push_back(fd);
  }
  ::closedir(directory);
  return inherited;
}

// What this process was started from: a new one of the same name may stand there by the time of an update.
std::string own_program() {
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  return length > 0 ? std::string(path.data(), static_cast<std::size_t>(length)) : std::string();
}

class Daemon {
 public:
  Daemon(DaemonOptions options, std::vector<UniqueFd> passed, std::vector<int> inherited,
         std::vector<std::string> arguments)
      : options_(std::move(options)),
        passed_(std::move(passed)),
        service_(service_options(std::move(inherited)), events_,
                 [this](std::function<void()> job) { loop_.post(std::move(job)); }),
        server_(loop_, events_, service_, control_options(), [this] { loop_.stop(); }) {
    if (options_.attached) {
      guests_ = std::make_unique<GuestDoor>(loop_, service_, *options_.attached, fmt::format("migrationd {}", version),
                                            [this] { receive_into_guest(); });
    }
    update::UpdaterOptions updating{own_program(), std::move(arguments), options_.allow_exec, std::string(version)};
    updater_ = std::make_unique<update::Updater>(std::move(updating), loop_, service_, server_, guests_.get(),
                                                 [this] { loop_.stop(); });
  }

  Result<void> start() {
    if (options_.take_over) return take_over(UniqueFd(*options_.take_over));
    MD_CHECK(make_machine());
    // Before the sockets: whoever finds one may end us already.
    handle_signals();
    // Before the control socket: who waits for that one may tell an old process to connect.
    if (options_.incoming_cpr) {
      auto waiting = service_.await_cpr(*options_.incoming_cpr, std::exchange(options_.incoming, {}), server_.fds());
      if (!waiting) return std::move(waiting).error().with("--incoming");
    }
    MD_CHECK(open_control());
    if (guests_) return guests_->open();
    if (options_.incoming) {
      auto started = service_.migrate_incoming(*options_.incoming, false, server_.fds());
      if (!started) return std::move(started).error().with("--incoming");
    }
    return {};
  }

  int run() {
    // One that replaces another is announced by that one.
    if (!options_.take_over) service::notify_ready("waiting for commands");
    loop_.run();
    if (!updater_->replaced()) service::notify_stopping();
    log::info("ends: {}", service_.shut_down());
    if (guests_) guests_->close();
    server_.shut_down();
    // Neither its threads nor its memory can be let go of in order.
    if (service_.guest_is_stranded()) ::_exit(EXIT_FAILURE);
    return exit_status_;
  }

 private:
  migration::ServiceOptions service_options(std::vector<int> inherited) {
    migration::ServiceOptions options;
    options.start_paused = options_.paused;
    options.allow_exec = options_.allow_exec;
    options.attached = options_.attached.has_value();
    options.worker_cpus = options_.worker_cpus;
    options.uuid = options_.uuid;
    options.memory_files = options_.memory_files;
    options.inherited_fds = std::move(inherited);
    options.exit_on_error = [this] {
      exit_status_ = EXIT_FAILURE;
      loop_.stop();
    };
    options.status_text = [this](const std::string& text) {
      if (!inheritance_) service::notify_status(text);
    };
    options.arrived = [this] { go_on(); };
    return options;
  }

  control::ControlOptions control_options() const {
    control::ControlOptions options;
    options.version.qemu = {qemu_major, qemu_minor, qemu_micro};
    options.version.package = fmt::format("migrationd {}", version);
    options.name = options_.name;
    options.uuid = options_.uuid_text;
    options.update = [this](const qmp::UpdateArgs& args, control::UpdateDone done) {
      updater_->start(args, std::move(done));
    };
    return options;
  }

  Result<void> make_machine() {
    if (!options_.synthetic) return {};
    const auto start = options_.waits ? SyntheticStart::empty : SyntheticStart::filled;
    auto machine = SyntheticMachine::create(*options_.synthetic, start);
    if (!machine) return std::move(machine).error().with("--machine");
    service_.adopt_machine(std::move(*machine), options_.waits);
    if (options_.waits || options_.paused) return {};
    return service_.cont();
  }

  // --incoming with an attached guest: as soon as an empty one is there, and once.
  void receive_into_guest() {
    const auto address = std::exchange(options_.incoming, std::nullopt);
    if (!address) return;
    auto started = service_.migrate_incoming(*address, false, server_.fds());
    if (started) return;
    log::error("--incoming: {}", started.error().text());
    exit_status_ = EXIT_FAILURE;
    loop_.stop();
  }

  // --take-over: everything is made ready here, and served from go_on() on. Until then the daemon before is the daemon,
  // and an error or our end changes nothing for it.
  Result<void> take_over(UniqueFd channel) {
    MD_TRY(const auto stop, StopSource::make());
    MD_TRY(inheritance_, update::receive_inheritance(std::move(channel), *stop));
    update::Inheritance& got = *inheritance_;
    log::info("takes over from migrationd {}: machine {}, {} control sockets", printable(got.settings.version),
              printable(got.settings.machine), got.control.size());
    server_.hold();
    for (std::size_t i = 0; i < got.control.size(); ++i)
      MD_CHECK(server_.inherit(std::move(got.control[i]), got.settings.control_paths[i]));
    handle_signals();
    if (guests_) {
      guests_->hold();
      if (got.door) MD_CHECK(guests_->inherit(std::move(got.door), got.settings.door_path));
    }
    if (got.settings.machine == "none") return take_over_nothing();
    MD_CHECK(make_machine_over(got));
    return service_.take_over(std::move(got.cpr), std::move(got.main), std::move(got.rest));
  }

  Result<void> make_machine_over(update::Inheritance& got) {
    if (options_.synthetic) {
      MD_TRY(auto machine, SyntheticMachine::create_over(*options_.synthetic, got.rest));
      service_.adopt_machine(std::move(machine), true);
    } else if (guests_) {
      MD_TRY(auto guest, decode_registration(got.registration, got.rest));
      MD_TRY(auto machine, guests_->expect(std::move(got.guest), std::move(guest)));
      service_.adopt_machine(std::move(machine), true);
    }
    return {};
  }

  // There is no stream then: our word alone.
  Result<void> take_over_nothing() {
    MD_CHECK(make_machine());
    inheritance_->cpr.reset();
    MD_CHECK(migration::say_taken_over(inheritance_->main.get()));
    loop_.post([this] { go_on(); });
    return {};
  }

  // The daemon before has nothing any more: what waits in its sockets is ours.
  void go_on() {
    if (!inheritance_) return;
    // Only now: what is set for migrations is none of the take-over's business.
    const update::DaemonSettings settings = std::move(inheritance_->settings);
    inheritance_.reset();
    service_.inherit(settings.capabilities, settings.parameters, settings.origin);
    server_.resume();
    if (guests_) guests_->resume();
    log::info("has taken over");
  }

  Result<void> open_control() {
    for (UniqueFd& socket : passed_) MD_CHECK(server_.adopt(std::move(socket)));
    for (const control::SocketOptions& socket : options_.qmp) MD_CHECK(server_.listen(socket));
    return {};
  }

  void handle_signals() {
    constexpr std::array signals = {SIGTERM, SIGINT};
    loop_.on_signals(signals, [this](int signal) {
      // What is cancelled is reported before the end is.
      log::info("signal {}", signal);
      service_.shut_down();
      server_.announce_shutdown(qmp::ShutdownCause::host_signal);
      loop_.stop();
    });
  }

  DaemonOptions options_;
  std::vector<UniqueFd> passed_;
  control::EventLoop loop_;
  control::EventBus events_;
  migration::DaemonService service_;
  control::ControlServer server_;
  std::unique_ptr<GuestDoor> guests_;  // of an attached machine
  std::unique_ptr<update::Updater> updater_;
  std::optional<update::Inheritance> inheritance_;  // while it is taken over
  int exit_status_ = EXIT_SUCCESS;
};

int fail(const Error& error, int status) {
  fmt::print(stderr, "migrationd: {}\n", error.text());
  return status;
}

int main_function(int argc, const char* const* argv) {
  // A peer that is gone is an error of a write, not of the process.
  std::signal(SIGPIPE, SIG_IGN);
  // So is a file that may not grow further (RLIMIT_FSIZE).
  std::signal(SIGXFSZ, SIG_IGN);
  auto inherited = inherited_descriptors();
  auto passed = service::listen_fds();
  for (const UniqueFd& socket : passed) std::erase(inherited, socket.get());

  auto parsed = parse_options(argc, argv);
  if (!parsed) return fail(parsed.error(), usage_status);
  if (parsed->print) {
    fmt::print("{}", *parsed->print);
    return EXIT_SUCCESS;
  }
  DaemonOptions options = std::move(parsed->options);
  if (auto ready = log::set_up(options.log_level, options.name.value_or("")); !ready) {
    return fail(ready.error(), usage_status);
  }
  if (options.take_over) {
    std::erase(inherited, *options.take_over);
    ::fcntl(*options.take_over, F_SETFD, FD_CLOEXEC);
  } else if (options.qmp.empty() && passed.empty()) {
    return fail(plan_error("--qmp unix:PATH is needed: nobody could tell this daemon anything"), usage_status);
  }

  Daemon daemon(std::move(options), std::move(passed), std::move(inherited), {argv + 1, argv + argc});
  if (auto started = daemon.start(); !started) return fail(started.error(), EXIT_FAILURE);
  return daemon.run();
}

}  // namespace
}  // namespace migrationd

int main(int argc, char** argv) { return migrationd::main_function(argc, argv); }
