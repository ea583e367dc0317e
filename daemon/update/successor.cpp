// SPDX-License-Identifier: Apache-2.0
#include "daemon/update/successor.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/sched.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <utility>

namespace migrationd::update {
namespace {

bool has_ended(int handle, std::chrono::milliseconds wait) noexcept {
  pollfd watched{handle, POLLIN, 0};
  int ready = -1;
  do {
    ready = ::poll(&watched, 1, static_cast<int>(wait.count()));
  } while (ready < 0 && errno == EINTR);
  return ready > 0;
}

// In the new process, which has our memory but none of our other threads: system calls alone, and none that a library
// might wrap. Says by `report` why it is still here.
[[noreturn]] void become(const char* program, char* const* argv, int channel, int report) noexcept {
  const std::uint64_t no_signals = 0;
  ::syscall(SYS_rt_sigprocmask, SIG_SETMASK, &no_signals, nullptr, sizeof no_signals);
  ::syscall(SYS_fcntl, channel, F_SETFD, 0);
  ::syscall(SYS_execve, program, argv, environ);
  const int err = errno;
  ::syscall(SYS_write, report, &err, sizeof err);
  ::_exit(127);
}

}  // namespace

Result<std::unique_ptr<Successor>> Successor::start(const std::string& program, std::vector<std::string> arguments,
                                                    UniqueFd channel) {
  if (::getpid() == 1)
    return machine_error("this daemon is process 1 of its container, which ends with it: start the new one beside it");
  arguments.push_back(fmt::format("--take-over={}", channel.get()));
  std::vector<char*> argv{const_cast<char*>(program.c_str())};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::array<int, 2> ends{-1, -1};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return Error::from_errno("start the new daemon");
  const UniqueFd answer(ends[0]);
  UniqueFd report(ends[1]);

  int handle = -1;
  const auto flags = static_cast<unsigned long>(CLONE_PARENT | CLONE_PIDFD | SIGCHLD);
  const long process = ::syscall(SYS_clone, flags, nullptr, &handle, nullptr, nullptr);
  if (process == 0) become(program.c_str(), argv.data(), channel.get(), report.get());
  if (process < 0) return Error::from_errno("start the new daemon");
  std::unique_ptr<Successor> started(new Successor(static_cast<pid_t>(process), UniqueFd(handle)));
  report.reset();
  int err = 0;
  ssize_t got = -1;
  do {
    got = ::read(answer.get(), &err, sizeof err);
  } while (got < 0 && errno == EINTR);
  if (got == static_cast<ssize_t>(sizeof err))
    return Error::from_errno(fmt::format("start '{}'", printable(program, 4096)), err);
  return started;
}

Successor::~Successor() { end({}); }

bool Successor::end(std::chrono::milliseconds wait) noexcept {
  const std::lock_guard lock(mutex_);
  if (!std::exchange(ours_, false)) return false;
  if (has_ended(handle_.get(), wait)) return true;
  ::syscall(SYS_pidfd_send_signal, handle_.get(), SIGKILL, nullptr, 0);
  has_ended(handle_.get(), std::chrono::milliseconds(-1));
  return false;
}

void Successor::release() noexcept {
  const std::lock_guard lock(mutex_);
  ours_ = false;
}

}  // namespace migrationd::update
