// SPDX-License-Identifier: Apache-2.0
//
// The commands of migrationctl. Each prints its result on standard output and returns the process's exit code, or
// an Error, which main prints on standard error and turns into one.
#pragma once

#include "base/result.hpp"
#include "tools/migrationctl/qmp_client.hpp"

#include <chrono>
#include <string>
#include <vector>

namespace migrationd::ctl {

// Documented in docs/man/migrationctl.1.
enum ExitCode : int {
  exit_done = 0,
  exit_refused = 1,      // the daemon refused, or a check found something wrong
  exit_usage = 2,        // wrong arguments
  exit_unreachable = 3,  // no daemon, or the connection broke
  exit_failed = 4,       // the migration failed; cancel: it was not cancelled
  exit_cancelled = 5,    // the migration was cancelled
  exit_needs_force = 6,  // too dangerous without --force
  exit_missing = 7,      // doctor: something that is needed is missing
  exit_interrupted = 130
};

struct Output {
  bool json = false;
  bool terminal = false;  // standard output is one
};

struct MigrateOptions {
  std::string uri;
  bool detach = false;
  bool resume = false;
};

// A mapped-ram file.
struct FileOptions {
  std::string path;  // relative to our own directory
  bool direct = false;
};

Result<int> show_status(QmpClient& client, const Output& output);
Result<int> migrate(QmpClient& client, const Output& output, const MigrateOptions& options);
Result<int> incoming(QmpClient& client, const Output& output, const std::string& uri, bool wait);
Result<int> save(QmpClient& client, const Output& output, const FileOptions& options);
Result<int> load(QmpClient& client, const Output& output, const FileOptions& options);
// Shows a migration until its end, or until note_interrupt().
Result<int> watch_migration(QmpClient& client, const Output& output, bool incoming);
// Waits for the end so long; exit_done when the migration is cancelled or none was running.
inline constexpr std::chrono::milliseconds cancel_wait{10'000};
Result<int> cancel(QmpClient& client, const Output& output, std::chrono::milliseconds wait = cancel_wait);
Result<int> capabilities(QmpClient& client, const Output& output, const std::vector<std::string>& changes);
Result<int> parameters(QmpClient& client, const Output& output, const std::vector<std::string>& changes);
Result<int> stop(QmpClient& client, const Output& output);
Result<int> cont(QmpClient& client, const Output& output, bool force);
Result<int> verify_machine(QmpClient& client, const Output& output);
Result<int> raw(QmpClient& client, const std::string& command, const std::string& arguments);
int doctor(const Output& output);

// After SIGINT: a command that watches a migration leaves, the migration goes on.
void note_interrupt() noexcept;
bool interrupted() noexcept;

}  // namespace migrationd::ctl
