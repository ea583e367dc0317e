// SPDX-License-Identifier: Apache-2.0
#include "daemon/update/updater.hpp"

#include "base/log.hpp"
#include "daemon/machine/own_descriptors.hpp"
#include "daemon/service.hpp"
#include "daemon/update/settings.hpp"
#include "guest/sealed_state.hpp"

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <utility>

namespace migrationd::update {
namespace {

constexpr std::chrono::milliseconds default_wait{30'000};
// A new daemon that failed has closed its channel a moment before it ends: whether it ended by itself is worth this
// wait of the mover's.
constexpr std::chrono::milliseconds own_end_wait{1000};
// The service manager confirms in its own time; nobody is without a daemon meanwhile.
constexpr std::chrono::milliseconds service_manager_wait{2000};

struct SocketPair {
  UniqueFd ours;
  UniqueFd theirs;
};

Result<SocketPair> make_pair(const char* what) {
  std::array<int, 2> ends{-1, -1};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return Error::from_errno(fmt::format("make the {}", what));
  return SocketPair{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

std::string kind_name(std::optional<MachineKind> kind) {
  if (!kind) return "none";
  constexpr std::array names{"parked", "synthetic", "attached"};
  return names[static_cast<std::size_t>(*kind)];
}

// Whether `argument` is this option, and the next word its value.
bool is_option(std::string_view argument, std::string_view name, bool& has_value) {
  if (argument == name) {
    has_value = true;
    return true;
  }
  has_value = false;
  return argument.starts_with(name) && argument.substr(name.size()).starts_with('=');
}

}  // namespace

std::vector<std::string> successor_arguments(const std::vector<std::string>& own, bool waits) {
  std::vector<std::string> out;
  bool waited = false;
  for (std::size_t i = 0; i < own.size(); ++i) {
    bool has_value = false;
    if (own[i] == "--paused") continue;
    if (is_option(own[i], "--incoming", has_value)) {
      waited = true;
      if (has_value) ++i;
      continue;
    }
    if (is_option(own[i], "--take-over", has_value)) {
      if (has_value) ++i;
      continue;
    }
    out.push_back(own[i]);
  }
  if (waits && waited) out.insert(out.end(), {"--incoming", "defer"});
  return out;
}

struct Updater::Attempt {
  control::UpdateDone done;
  std::chrono::steady_clock::time_point started = std::chrono::steady_clock::now();
  std::chrono::milliseconds wait{};
  std::string program;
  std::string machine;
  std::unique_ptr<Successor> successor;
  bool timed_out = false;
  bool ended = false;  // the new process, by itself; written by the mover before `done`
};

Updater::Updater(UpdaterOptions options, control::EventLoop& loop, migration::DaemonService& service,
                 control::ControlServer& server, GuestDoor* guests, std::function<void()> on_replaced)
    : options_(std::move(options)),
      service_(service),
      server_(server),
      guests_(guests),
      on_replaced_(std::move(on_replaced)),
      patience_(loop.timer()) {}

Updater::~Updater() = default;

void Updater::start(const qmp::UpdateArgs& args, control::UpdateDone done) {
  if (attempt_ || replaced_) return done(machine_error("An update of this daemon is in progress"));
  attempt_ = std::make_unique<Attempt>();
  attempt_->done = std::move(done);
  server_.hold();
  if (guests_ != nullptr) guests_->hold();
  if (auto begun = begin(args); !begun) finish(begun);
}

// What an operator may do with a daemon that runs no commands of its clients: the program that was installed in its own
// place.
Result<std::string> Updater::program_of(const qmp::UpdateArgs& args) const {
  if (!args.binary) return options_.program;
  if (!options_.allow_binary && *args.binary != options_.program)
    return plan_error("--allow-exec=off: only the program this daemon was started from may replace it");
  if (args.binary->empty() || args.binary->front() != '/')
    return plan_error(fmt::format("binary '{}' is no absolute path", printable(*args.binary)));
  return *args.binary;
}

Result<void> Updater::begin(const qmp::UpdateArgs& args) {
  MD_TRY(attempt_->program, program_of(args));
  attempt_->wait = args.timeout ? std::chrono::milliseconds(*args.timeout) : default_wait;
  MD_TRY(const auto kind, service_.check_hand_over());
  if (!kind && guests_ != nullptr && guests_->has_visitor())
    return machine_error("a guest is attaching, or its machine is not gone yet: try again when that is done");
  attempt_->machine = kind_name(kind);

  MD_TRY(SocketPair cpr, make_pair("cpr channel"));
  MD_TRY(SocketPair main, make_pair("main channel"));
  MD_TRY(auto extra, pack(attempt_->machine, std::move(main.theirs)));
  MD_TRY(attempt_->successor,
         Successor::start(attempt_->program, successor_arguments(options_.arguments, !kind), std::move(cpr.theirs)));
  log::info("update: process {} of '{}' is to take over", attempt_->successor->process(),
            printable(attempt_->program, 4096));
  patience_->start(attempt_->wait, [this] { time_out(); });

  migration::HandOver to;
  to.cpr = std::move(cpr.ours);
  to.main = std::move(main.ours);
  to.extra = std::move(extra);
  to.revoke = [attempt = attempt_.get()] { attempt->ended = attempt->successor->end(own_end_wait); };
  to.done = [this](const Result<void>& outcome) { finish(outcome); };
  return service_.hand_over(std::move(to));
}

Result<std::vector<cpr::NamedDescriptor>> Updater::pack(const std::string& machine, UniqueFd main) const {
  std::vector<cpr::NamedDescriptor> out;
  const auto add = [&out](std::int32_t id, UniqueFd fd) {
    out.push_back({std::string(own_descriptors), id, std::move(fd)});
  };
  DaemonSettings settings;
  settings.version = options_.version;
  settings.machine = machine;
  settings.origin = service_.origin();
  settings.capabilities = service_.capabilities();
  settings.parameters = service_.parameters();
  MD_TRY(auto sockets, server_.share_sockets());
  for (std::size_t i = 0; i < sockets.size(); ++i) {
    add(first_control_id + static_cast<std::int32_t>(i), std::move(sockets[i].fd));
    settings.control_paths.push_back(sockets[i].owns_path);
  }
  if (guests_ != nullptr) {
    MD_TRY(auto door, guests_->share_socket());
    if (door.fd) add(guest_door_id, std::move(door.fd));
    settings.door_path = door.owns_path;
  }
  add(main_channel_id, std::move(main));
  MD_TRY(UniqueFd record, guest::make_state(encode_settings(settings)));
  add(settings_id, std::move(record));
  return out;
}

void Updater::time_out() {
  if (!attempt_) return;
  attempt_->timed_out = true;
  service_.abandon_hand_over();
}

void Updater::finish(const Result<void>& outcome) {
  patience_->cancel();
  const std::unique_ptr<Attempt> attempt = std::move(attempt_);
  const auto took =
      std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - attempt->started);
  if (!outcome) {
    // It has no part in anything any more, whichever step failed.
    if (attempt->successor && attempt->successor->end({})) attempt->ended = true;
    if (guests_ != nullptr) guests_->resume();
    std::string why = attempt->timed_out
                          ? fmt::format("the new daemon did not take over within {} ms", attempt->wait.count())
                          : outcome.error().text();
    if (attempt->ended) why += " (it ended by itself; the log has its words)";
    log::error("update: {}; this daemon goes on", why);
    attempt->done(machine_error("update: " + why));
    return server_.resume();
  }
  replaced_ = true;
  attempt->successor->release();
  server_.give_up_sockets();
  if (guests_ != nullptr) guests_->give_up_socket();
  service::notify_successor(attempt->successor->process(), "waiting for commands", service_manager_wait);
  log::info("update: process {} has taken over after {} ms", attempt->successor->process(), took.count());
  attempt->done(qmp::UpdateInfo{attempt->successor->process(), attempt->program, attempt->machine,
                                static_cast<std::uint64_t>(took.count())});
  on_replaced_();
}

}  // namespace migrationd::update
