// SPDX-License-Identifier: Apache-2.0
//
// resume FILE --to URI: a daemon of our own opens the file where it lies and sends its machine straight into postcopy,
// once per destination. All destinations run before the first one has its memory.
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/own_daemon.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <thread>

namespace migrationd::ctl {

namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr const char* instant_resume = "__org.migrationd_instant-resume";
constexpr auto resume_poll = 1ms;
constexpr auto slow_interval = 50ms;

double milliseconds(Clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

struct Clone {
  std::string uri;
  std::unique_ptr<OwnDaemon> daemon;
  double opened_ms = 0;
  std::optional<double> runs_ms;
  std::string status;
  Json query;
  bool ended = false;
};

Json switched(std::initializer_list<std::pair<const char*, bool>> states) {
  Json list = Json::array();
  for (const auto& [name, state] : states) list.push_back({{"capability", name}, {"state", state}});
  return {{"capabilities", std::move(list)}};
}

// The destinations: as given, or one URI with {} for the clone's number.
Result<std::vector<std::string>> destinations(const ResumeOptions& options) {
  std::vector<std::string> out = options.to;
  if (options.clones == 0) return out;
  if (out.size() != 1 || out.front().find("{}") == std::string::npos) {
    return plan_error("--clones N takes one --to URI with {} where the number of the clone goes: unix:/run/vm{}.sock");
  }
  const std::string form = out.front();
  const std::size_t place = form.find("{}");
  out.clear();
  for (unsigned i = 0; i < options.clones; ++i) {
    out.push_back(form.substr(0, place) + std::to_string(i) + form.substr(place + 2));
  }
  return out;
}

Result<Json> parameters(const ResumeOptions& options) {
  Json out{{"__org.migrationd_postcopy-page-sizes", fmt::format("{}", fmt::join(options.page_sizes, ","))},
           {"__org.migrationd_working-set", options.working_set}};
  if (options.background.empty()) return out;
  MD_TRY(const std::uint64_t rate, parse_number(options.background));
  out["max-postcopy-bandwidth"] = rate;
  out["__org.migrationd_postcopy-background"] = rate != 0;
  return out;
}

Result<void> await_opened(QmpClient& client) {
  while (true) {
    MD_TRY(const Json query, client.execute("query-migrate"));
    const std::string status = query.value("status", "");
    if (status == "completed") return {};
    if (status == "failed") return Error(ErrorKind::peer, query.value("error-desc", "it failed"));
    std::this_thread::sleep_for(resume_poll);
  }
}

Result<void> open_file(Clone& clone, const ResumeOptions& options) {
  const auto begun = Clock::now();
  QmpClient& client = clone.daemon->client();
  MD_CHECK(client.execute("migrate-set-capabilities", switched({{instant_resume, true}})));
  const Json address{{"transport", "file"}, {"filename", options.path}, {"offset", options.offset}};
  const Json channels = Json::array({Json{{"channel-type", "main"}, {"addr", address}}});
  MD_CHECK(client.execute("migrate-incoming", {{"channels", channels}, {"exit-on-error", false}}));
  auto opened = await_opened(client);
  if (!opened) return std::move(opened).error().with(options.path);
  clone.opened_ms = milliseconds(Clock::now() - begun);
  if (options.run) MD_CHECK(client.execute("cont"));
  return {};
}

Result<void> send(Clone& clone, const ResumeOptions& options) {
  QmpClient& client = clone.daemon->client();
  MD_CHECK(client.execute("migrate-set-capabilities",
                          switched({{"postcopy-ram", true}, {"postcopy-preempt", options.preempt}})));
  MD_TRY(Json wanted, parameters(options));
  MD_CHECK(client.execute("migrate-set-parameters", std::move(wanted)));
  const auto begun = Clock::now();
  MD_CHECK(client.execute("migrate", {{"uri", clone.uri}}));
  while (true) {
    MD_TRY(clone.query, client.execute("query-migrate"));
    clone.status = clone.query.value("status", "");
    if (clone.status == "postcopy-active" || clone.status == "completed") {
      clone.runs_ms = milliseconds(Clock::now() - begun);
      return {};
    }
    if (clone.status == "failed" || clone.status == "postcopy-paused") {
      return Error(ErrorKind::peer, clone.query.value("error-desc", "it failed"));
    }
    std::this_thread::sleep_for(resume_poll);
  }
}

void tell_running(const Clone& clone, const Output& output) {
  if (output.json) {
    fmt::print("{}\n", Json{{"to", clone.uri},
                            {"status", "running"},
                            {"opened-ms", clone.opened_ms},
                            {"handed-over-ms", *clone.runs_ms},
                            {"socket", clone.daemon->socket()}}
                           .dump());
  } else {
    fmt::print("{}: handed over {:.1f} ms after connecting (file opened in {:.1f} ms); its memory follows\n",
               printable(clone.uri, 500), *clone.runs_ms, clone.opened_ms);
  }
  std::fflush(stdout);
}

void tell_ended(const Clone& clone, const Output& output) {
  if (output.json) {
    Json line = clone.query;
    line["to"] = clone.uri;
    fmt::print("{}\n", line.dump());
  } else if (clone.status == "completed") {
    const Json ram = clone.query.value("ram", Json::object());
    fmt::print("{}: complete after {}: {} sent, {} requests\n", printable(clone.uri, 500),
               duration_text(clone.query.value("total-time", std::uint64_t{0})),
               size_text(ram.value("postcopy-bytes", std::uint64_t{0})),
               ram.value("postcopy-requests", std::uint64_t{0}));
  } else {
    fmt::print(stderr, "migrationctl: {}: {}: {}\n", printable(clone.uri, 500), clone.status,
               clone.query.value("error-desc", ""));
  }
  std::fflush(stdout);
}

void tell_left(const Clone& clone, const char* why) {
  fmt::print(stderr,
             "migrationctl: {}: {}; its memory is served by migrationd {} (control socket {}), which must stay until "
             "'migrationctl --socket {} status' says completed\n",
             printable(clone.uri, 500), why, clone.daemon->pid(), clone.daemon->socket(), clone.daemon->socket());
}

// A paused one is left to its user, who can mend the connection.
Result<int> watch(std::vector<Clone>& clones, const Output& output) {
  int code = exit_done;
  std::size_t left = clones.size();
  while (left > 0 && !interrupted()) {
    for (Clone& clone : clones) {
      if (clone.ended) continue;
      MD_TRY(clone.query, clone.daemon->client().execute("query-migrate"));
      clone.status = clone.query.value("status", "");
      if (clone.status != "completed" && clone.status != "failed" && clone.status != "postcopy-paused") continue;
      clone.ended = true;
      --left;
      tell_ended(clone, output);
      if (clone.status == "postcopy-paused") {
        tell_left(clone, "paused");
      } else {
        clone.daemon->finish();
      }
      if (clone.status != "completed") code = exit_failed;
    }
    if (left > 0) std::this_thread::sleep_for(slow_interval);
  }
  for (const Clone& clone : clones) {
    if (!clone.ended) tell_left(clone, "left");
  }
  return left > 0 ? int{exit_interrupted} : code;
}

}  // namespace

Result<int> resume(const Output& output, ResumeOptions options) {
  MD_TRY(const auto uris, destinations(options));
  MD_TRY([[maybe_unused]] const Json checked, parameters(options));
  // The daemon's directory is another one than ours.
  options.path = std::filesystem::absolute(options.path);
  std::vector<Clone> clones(uris.size());
  // All are open before the first is sent.
  Result<void> ready;
  for (std::size_t i = 0; i < clones.size() && ready; ++i) {
    clones[i].uri = uris[i];
    auto daemon = OwnDaemon::start(fmt::format("resume-{}", i));
    if (daemon) clones[i].daemon = std::move(*daemon);
    ready = daemon ? open_file(clones[i], options) : Result<void>(std::move(daemon).error());
  }
  for (std::size_t i = 0; i < clones.size() && ready; ++i) {
    ready = send(clones[i], options);
    if (ready) {
      tell_running(clones[i], output);
    } else {
      ready = std::move(ready).error().with(printable(clones[i].uri, 500));
    }
  }
  if (!ready) {
    for (Clone& clone : clones) {
      if (!clone.daemon) continue;
      if (clone.runs_ms || clone.status == "postcopy-paused") {
        tell_left(clone, "left");
      } else {
        clone.daemon->finish();
      }
    }
    return std::move(ready).error();
  }
  if (!output.json) {
    fmt::print(
        stderr,
        "note: machines resumed from one file share MAC addresses, machine identity, keys, and the state of their "
        "random number generator\n");
    if (options.background == "0") {
      fmt::print(stderr, "note: pages go on demand only: the destination stays in postcopy, and needs this daemon\n");
    }
  }
  if (options.detach) {
    for (const Clone& clone : clones) tell_left(clone, "detached");
    return exit_done;
  }
  return watch(clones, output);
}

}  // namespace migrationd::ctl
