// SPDX-License-Identifier: Apache-2.0
//
// What the transport tests share: a scratch directory, a descriptor source, and a stop that is raised from
// another thread while the tested call waits.
#pragma once

#include "base/stop.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/transports/channels.hpp"
#include "transports/fd_source.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <thread>

namespace migrationd::testing {

using namespace std::chrono_literals;

// The contract of Channel: the process ignores SIGPIPE.
inline const auto sigpipe_before = std::signal(SIGPIPE, SIG_IGN);

class ScratchDir {
 public:
  ScratchDir() {
    std::string name = (std::filesystem::temp_directory_path() / "migrationd-test-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ScratchDir(const ScratchDir&) = delete;
  ScratchDir& operator=(const ScratchDir&) = delete;
  ~ScratchDir() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Named descriptors and one set, with the rules of FdSource.
class FakeFdSource final : public transports::FdSource {
 public:
  std::map<std::string, UniqueFd, std::less<>> named;
  std::map<std::string, std::vector<UniqueFd>, std::less<>> sets;
  int last_flags = -1;

  Result<UniqueFd> take_named(std::string_view name) override {
    const auto found = named.find(name);
    if (found == named.end()) return plan_error("File descriptor named '" + std::string(name) + "' has not been found");
    UniqueFd fd = std::move(found->second);
    named.erase(found);
    return fd;
  }
  Result<void> check_mapped_fdset(std::string_view, int, bool) override { return {}; }
  Result<UniqueFd> open_fdset(std::string_view path, int flags) override {
    last_flags = flags;
    const auto found = sets.find(path);
    if (found == sets.end()) return plan_error("Failed to find fdset " + std::string(path));
    for (const UniqueFd& member : found->second) {
      if ((::fcntl(member.get(), F_GETFL) & O_ACCMODE) == (flags & O_ACCMODE)) return member.duplicate();
    }
    return plan_error("Failed to find file descriptor with matching flags");
  }
};

// Raises `stop` after a pause; tells how long after that the tested call came back.
class LateStop {
 public:
  explicit LateStop(StopSource& stop, std::chrono::milliseconds pause = 50ms)
      : due_(std::chrono::steady_clock::now() + pause), thread_([this, &stop] {
          std::this_thread::sleep_until(due_);
          stop.request();
        }) {}
  // Joins, and checks that the call waited for the stop and left because of it. How soon is a matter of the machine:
  // the bound tells a wake-up from a wait for something else.
  void check_prompt() {
    const auto now = std::chrono::steady_clock::now();
    thread_.join();
    CHECK(now >= due_);
    CHECK(now - due_ < 10s);
  }

 private:
  std::chrono::steady_clock::time_point due_;
  std::thread thread_;
};

inline Result<void> write_text(transports::Channel& channel, std::string_view text) {
  const iovec piece{const_cast<char*>(text.data()), text.size()};
  return channel.write({&piece, 1});
}

// Everything up to the end; an error ends it too.
inline std::string read_all(transports::Channel& channel) {
  std::string out;
  char buffer[4096];
  const iovec piece{buffer, sizeof buffer};
  while (true) {
    const auto got = channel.read({&piece, 1});
    if (!got || *got == 0) return out;
    out.append(buffer, *got);
  }
}

}  // namespace migrationd::testing
