// SPDX-License-Identifier: Apache-2.0
//
// Starting, watching and ending migrations.
#include "tools/migrationctl/commands.hpp"
#include "tools/migrationctl/progress.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>

namespace migrationd::ctl {

namespace {

using namespace std::chrono_literals;

// Often enough to look alive, and to see the end soon; the daemon answers from a snapshot.
constexpr auto progress_interval = 100ms;
// A log or a pipe gets a line per second, and one per change of state.
constexpr auto line_interval = 1000ms;

std::atomic<bool> interrupt_seen{false};
static_assert(std::atomic<bool>::is_always_lock_free);

// Ends early at a signal.
void pause_for(std::chrono::milliseconds time) { ::poll(nullptr, 0, static_cast<int>(time.count())); }

std::size_t terminal_width() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1) return size.ws_col - 1u;
  return 79;
}

class Display {
 public:
  explicit Display(const Output& output) : output_(output) {}

  void show(const Sample& sample) {
    using std::chrono::milliseconds;
    const auto now = std::chrono::steady_clock::now();
    const bool changed = sample.status != last_status_;
    // Without numbers nothing new is to be said before the status changes.
    const bool due = now - last_line_ >= line_interval && (sample.measured || output_.json);
    const bool redraws = output_.terminal && !output_.json;
    const auto time = std::chrono::duration_cast<milliseconds>(now.time_since_epoch());
    const Outlook outlook = forecast_.update(sample, time, !redraws && (changed || due));
    if (redraws) {
      fmt::print("\r\x1b[K{}", progress_bar(sample, outlook, terminal_width()));
      drawn_ = true;
    } else if (changed || due) {
      print_line(sample, outlook);
      last_line_ = now;
    }
    last_status_ = sample.status;
    std::fflush(stdout);
  }
  void finish(const Sample& sample) {
    if (drawn_) fmt::print("\r\x1b[K");
    if (!output_.json) fmt::print("{}\n", outcome(sample));
    std::fflush(stdout);
  }
  void leave() {
    if (drawn_) fmt::print("\n");
    std::fflush(stdout);
  }

 private:
  void print_line(const Sample& sample, const Outlook& outlook) const {
    if (output_.json) {
      fmt::print("{}\n", to_json(sample, outlook).dump());
    } else if (!sample.ended()) {
      fmt::print("{}\n", progress_line(sample, outlook));
    }
  }

  const Output& output_;
  Forecast forecast_;
  std::chrono::steady_clock::time_point last_line_{};
  std::string last_status_;
  bool drawn_ = false;
};

int exit_code(const Sample& sample) {
  if (sample.status == "failed") return exit_failed;
  if (sample.status == "cancelled") return exit_cancelled;
  return exit_done;
}

Result<Sample> look(QmpClient& client, bool incoming) {
  MD_TRY(const Json query, client.execute("query-migrate"));
  return Sample::from_query(query, incoming);
}

// The answer to "is it gone?": yes on standard output, everything else is a failure of what was asked for.
int cancel_result(const Sample& sample, const Output& output, std::chrono::milliseconds waited) {
  if (sample.status == "cancelled") {
    if (!output.json) fmt::print("{}\n", outcome(sample));
    return exit_done;
  }
  if (sample.ended()) {
    fmt::print(stderr, "migrationctl: not cancelled: {}\n", outcome(sample));
    return exit_failed;
  }
  if (interrupted()) {
    fmt::print(stderr, "migrationctl: no longer waiting; the migration is {}\n", sample.status);
    return exit_interrupted;
  }
  fmt::print(stderr, "migrationctl: asked to end, but after {} the migration is still {}\n",
             duration_text(static_cast<std::uint64_t>(waited.count())), sample.status);
  return exit_failed;
}

// A URI, or the structured form: a list of channels, or one address.
Result<Json> address_arguments(const std::string& address) {
  if (!address.starts_with('[') && !address.starts_with('{')) return Json{{"uri", address}};
  Json value = Json::parse(address, nullptr, false);
  if (value.is_discarded()) return plan_error("the address looks like JSON but is none");
  if (value.is_array()) return Json{{"channels", std::move(value)}};
  Json channel = value.contains("addr") ? std::move(value) : Json{{"channel-type", "main"}, {"addr", std::move(value)}};
  return Json{{"channels", Json::array({std::move(channel)})}};
}

// What `channels` needs where a person wrote a URI: cpr-transfer has no other form.
Result<Json> channel_of_uri(const std::string& uri) {
  MD_TRY(Json arguments, address_arguments(uri));
  if (arguments.contains("channels")) return Json(arguments["channels"][0]);
  Json address{{"transport", "socket"}};
  const std::string rest = uri.substr(std::min(uri.find(':') + 1, uri.size()));
  const auto colon = rest.rfind(':');
  if (uri.starts_with("unix:")) {
    address["type"] = "unix";
    address["path"] = rest;
  } else if (uri.starts_with("tcp:") && colon != std::string::npos) {
    const std::string host = rest.substr(0, colon);
    const bool brackets = host.size() > 1 && host.front() == '[' && host.back() == ']';
    address["type"] = "inet";
    address["host"] = brackets ? host.substr(1, host.size() - 2) : host;
    address["port"] = rest.substr(colon + 1);
  } else {
    return plan_error("with --cpr the address is unix:PATH, tcp:HOST:PORT, or JSON");
  }
  return Json{{"channel-type", "main"}, {"addr", std::move(address)}};
}

// By cpr-transfer; the parameter `mode` is afterwards what it was, unless nobody waits for the end.
Result<int> migrate_by_cpr(QmpClient& client, const Output& output, const MigrateOptions& options) {
  MD_TRY(Json main, channel_of_uri(options.uri));
  Json cpr{{"channel-type", "cpr"}, {"addr", {{"transport", "socket"}, {"type", "unix"}, {"path", options.cpr}}}};
  MD_TRY(const Json parameters, client.execute("query-migrate-parameters"));
  const std::string before = parameters.value("mode", "normal");
  MD_CHECK(client.execute("migrate-set-parameters", {{"mode", "cpr-transfer"}}));
  auto started = client.execute("migrate", {{"channels", Json::array({std::move(main), std::move(cpr)})}});
  auto result = !started         ? Result<int>(std::move(started).error())
                : options.detach ? Result<int>(exit_done)
                                 : watch_migration(client, output, false);
  if (!started || !options.detach) MD_CHECK(client.execute("migrate-set-parameters", {{"mode", before}}));
  return result;
}

std::string address_text(const Json& address) {
  const std::string type = address.value("type", "");
  const std::string host = address.value("host", "");
  if (type == "unix") return "unix:" + address.value("path", "");
  if (type == "vsock") return fmt::format("vsock:{}:{}", address.value("cid", ""), address.value("port", ""));
  const bool brackets = host.find(':') != std::string::npos;
  return fmt::format("tcp:{}{}{}:{}", brackets ? "[" : "", host, brackets ? "]" : "", address.value("port", ""));
}

}  // namespace

void note_interrupt() noexcept { interrupt_seen.store(true, std::memory_order_relaxed); }
bool interrupted() noexcept { return interrupt_seen.load(std::memory_order_relaxed); }

Result<int> watch_migration(QmpClient& client, const Output& output, bool incoming) {
  Display display(output);
  while (true) {
    MD_TRY(const Sample sample, look(client, incoming));
    display.show(sample);
    if (sample.ended()) {
      display.finish(sample);
      return exit_code(sample);
    }
    if (interrupted()) {
      display.leave();
      fmt::print(stderr, "migrationctl: no longer watching; the migration goes on (`migrationctl cancel` ends it)\n");
      return exit_interrupted;
    }
    pause_for(progress_interval);
  }
}

Result<int> migrate(QmpClient& client, const Output& output, const MigrateOptions& options) {
  if (!options.cpr.empty()) return migrate_by_cpr(client, output, options);
  MD_TRY(Json arguments, address_arguments(options.uri));
  if (options.resume) arguments["resume"] = true;
  MD_CHECK(client.execute("migrate", std::move(arguments)));
  if (options.detach) return exit_done;
  return watch_migration(client, output, false);
}

Result<int> incoming(QmpClient& client, const Output& output, const std::string& uri, bool wait) {
  MD_TRY(Json arguments, address_arguments(uri));
  // A person who typed this wants to read what went wrong from the daemon, not to find it gone.
  arguments["exit-on-error"] = false;
  MD_CHECK(client.execute("migrate-incoming", std::move(arguments)));
  MD_TRY(const Json query, client.execute("query-migrate"));
  if (query.contains("socket-address")) {
    if (output.json) {
      fmt::print("{}\n", Json{{"socket-address", query["socket-address"]}}.dump());
    } else {
      for (const Json& address : query["socket-address"]) fmt::print("listening on {}\n", address_text(address));
    }
    std::fflush(stdout);
  }
  if (!wait) return exit_done;
  return watch_migration(client, output, true);
}

Result<int> cancel(QmpClient& client, const Output& output, std::chrono::milliseconds wait) {
  MD_TRY(const Sample before, look(client, false));
  const bool idle = before.status == "none" || before.ended();
  if (!idle) MD_CHECK(client.execute("migrate_cancel"));
  Sample sample = before;
  const auto deadline = std::chrono::steady_clock::now() + wait;
  while (!idle) {
    MD_TRY(sample, look(client, before.incoming));
    if (sample.ended() || interrupted() || std::chrono::steady_clock::now() >= deadline) break;
    pause_for(progress_interval);
  }
  if (output.json) fmt::print("{}\n", to_json(sample, sample.outlook()).dump());
  if (idle) {
    if (!output.json) fmt::print("no migration was running\n");
    return exit_done;
  }
  return cancel_result(sample, output, wait);
}

}  // namespace migrationd::ctl
