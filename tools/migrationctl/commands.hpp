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
  exit_failed = 4,       // the migration failed; cancel: it was not cancelled; update: the old daemon goes on
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
  std::string cpr = {};  // the path of a new process's cpr socket; empty: an ordinary migration
};

// A file of the machine's own: mapped-ram, or a save image of libvirt.
struct FileOptions {
  std::string path;  // relative to our own directory
  bool direct = false;
  unsigned workers = 1;              // threads of the daemon for the pages, 1 to 255
  std::string libvirt_xml = {};      // save: a file with the domain's XML; a save image is written
  bool checksum = false;             // save: FILE.sums beside it
  std::string image_format = "raw";  // of it: "raw" or "sparse"
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
// Of a file; no daemon is asked.
struct InspectOptions {
  std::string path;
  bool xml = false;      // only libvirt's XML
  bool devices = false;  // with the fields of every device
};
Result<int> inspect(const Output& output, const InspectOptions& options);
Result<int> verify(const Output& output, const std::string& path);
struct ConvertOptions {
  std::string input;
  std::string output;
  std::string to;           // "plain", "mapped-ram", "libvirt-raw", "libvirt-sparse"
  std::string libvirt_xml;  // for the libvirt kinds; empty: that of the input
};
Result<int> convert(const Output& output, const ConvertOptions& options);
// Of two dumps of device tables.
struct CompareOptions {
  std::string older;
  std::string newer;
  std::string only;  // "old-in-new", "new-in-old"; empty: both
};
Result<int> compare_devices(const Output& output, const CompareOptions& options);
// The daemon replaced by a new process of its program, with its machine and its sockets.
struct UpdateOptions {
  std::string binary;    // empty: what stands where the daemon's program was started from
  unsigned timeout = 0;  // seconds; 0: the daemon's own bound
};
Result<int> update(QmpClient& client, const Output& output, const UpdateOptions& options);
Result<int> raw(QmpClient& client, const std::string& command, const std::string& arguments);
int doctor(const Output& output);

// Instant resume, by daemons of its own (docs/instant-resume.md).
struct ResumeOptions {
  std::string path;
  std::uint64_t offset = 0;
  std::vector<std::string> to;          // destinations, one machine each
  unsigned clones = 0;                  // not asked for
  std::string background;               // bytes per second; "0": on demand only; empty: no limit
  std::vector<std::string> page_sizes;  // BLOCK=SIZE
  bool preempt = false;
  bool run = false;         // also a machine that was saved stopped
  bool working_set = true;  // what was asked for is kept beside the file, and goes first the next time
  bool detach = false;
};
Result<int> resume(const Output& output, ResumeOptions options);

// After SIGINT: a command that watches a migration leaves, the migration goes on.
void note_interrupt() noexcept;
bool interrupted() noexcept;

}  // namespace migrationd::ctl
