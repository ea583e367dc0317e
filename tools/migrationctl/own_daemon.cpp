// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/own_daemon.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

namespace migrationd::ctl {

namespace {

using namespace std::chrono_literals;

constexpr auto start_wait = 10s;
constexpr auto start_poll = 1ms;

std::string program_path() {
  if (const char* from_environment = std::getenv("MIGRATIOND")) return from_environment;
  std::error_code ignored;
  const auto here = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const char* beside : {"migrationd", "../sbin/migrationd", "../daemon/migrationd", "../../daemon/migrationd"}) {
    const auto path = here / beside;
    if (std::filesystem::is_regular_file(path, ignored)) return std::filesystem::canonical(path, ignored);
  }
  return "migrationd";
}

std::string run_directory() {
  if (const char* own = std::getenv("XDG_RUNTIME_DIR")) return own;
  return "/tmp";
}

}  // namespace

Result<std::unique_ptr<OwnDaemon>> OwnDaemon::start(const std::string& name) {
  std::unique_ptr<OwnDaemon> daemon(new OwnDaemon());
  std::string directory = run_directory() + "/migrationctl-XXXXXX";
  if (::mkdtemp(directory.data()) == nullptr) return Error::from_errno("make a directory for the daemon's socket");
  daemon->directory_ = directory;
  daemon->socket_ = directory + "/qmp.sock";
  daemon->log_ = directory + "/log";
  MD_CHECK(daemon->launch(program_path(), name));
  MD_CHECK(daemon->await_socket());
  return daemon;
}

Result<void> OwnDaemon::launch(const std::string& program, const std::string& name) {
  const std::string socket = "unix:" + socket_;
  std::array<const char*, 6> argv{program.c_str(), "--qmp", socket.c_str(), "--name", name.c_str(), nullptr};
  posix_spawn_file_actions_t actions;
  posix_spawnattr_t attributes;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawnattr_init(&attributes);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, log_.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  ::posix_spawn_file_actions_adddup2(&actions, STDOUT_FILENO, STDERR_FILENO);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID);
  const int failed =
      ::posix_spawnp(&pid_, program.c_str(), &actions, &attributes, const_cast<char**>(argv.data()), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  ::posix_spawnattr_destroy(&attributes);
  if (failed == 0) return {};
  pid_ = -1;
  return Error::from_errno(fmt::format("start '{}' (MIGRATIOND names another)", program), failed);
}

Result<void> OwnDaemon::await_socket() {
  const auto deadline = std::chrono::steady_clock::now() + start_wait;
  while (true) {
    auto client = QmpClient::connect(socket_);
    if (client) {
      client_.emplace(std::move(*client));
      return {};
    }
    int status = 0;
    if (::waitpid(pid_, &status, WNOHANG) == pid_) {
      pid_ = -1;
      return Error(ErrorKind::io, "the daemon ended at its start: " + last_words());
    }
    if (std::chrono::steady_clock::now() > deadline)
      return std::move(client).error().with("the daemon does not answer");
    std::this_thread::sleep_for(start_poll);
  }
}

std::string OwnDaemon::last_words() const {
  std::ifstream file(log_);
  std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  while (text.ends_with('\n')) text.pop_back();
  const std::size_t line = text.rfind('\n');
  return printable(line == std::string::npos ? text : text.substr(line + 1), 500);
}

void OwnDaemon::finish() {
  if (pid_ < 0) return;
  // It closes the connection instead of an answer, maybe.
  if (client_) [[maybe_unused]]
    const auto ignored = client_->execute("quit");
  ::waitpid(pid_, nullptr, 0);
  pid_ = -1;
}

OwnDaemon::~OwnDaemon() {
  std::error_code ignored;
  // A daemon that goes on keeps its socket.
  if (pid_ < 0) std::filesystem::remove_all(directory_, ignored);
}

}  // namespace migrationd::ctl
