// SPDX-License-Identifier: Apache-2.0
//
// ExecChild: a program started for exec: (file-and-channels.md 5.3), with a pipe to its standard input and one
// from its standard output. Standard error, environment and working directory are ours; every other descriptor
// is closed in it. It leads a process group of its own, so that ending it ends the pipeline a shell made.
//
// QEMU waits for its child without a limit. We end one that does not go: never a zombie, never a hang. Owner:
// one thread at a time.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "transports/channel.hpp"

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace migrationd::transports {

class ExecChild {
 public:
  // argv[0] is a path: no shell, no search. Error: "Failed to execute child process “/nonexist” (No such file
  // or directory)".
  // With an `input` that is its standard input, from the position on that it has, and take_input() gives nothing.
  static Result<std::unique_ptr<ExecChild>> start(std::span<const std::string> argv, UniqueFd input = {});
  ExecChild(const ExecChild&) = delete;
  ExecChild& operator=(const ExecChild&) = delete;
  // Closes the pipes, gives the child a moment to end by itself, then SIGTERM, then SIGKILL; about a second.
  ~ExecChild();

  UniqueFd take_input() noexcept { return std::move(input_); }    // write end: the child's stdin
  UniqueFd take_output() noexcept { return std::move(output_); }  // read end: the child's stdout
  // Readable once the child has ended.
  int pid_fd() const noexcept { return pid_fd_.get(); }

  // The wait status of a child that has ended; waits for it.
  int reap() noexcept;
  // The wait status of one that ends by itself within that time.
  std::optional<int> reap_within(std::chrono::milliseconds time) noexcept;
  // SIGTERM, `grace` to go, SIGKILL; reaps.
  void end(std::chrono::milliseconds grace) noexcept;
  // For one that is about to end by itself: its wait status; after `grace` it is ended.
  int finish(std::chrono::milliseconds grace) noexcept;

 private:
  ExecChild(pid_t pid, UniqueFd pid_fd, UniqueFd input, UniqueFd output) noexcept;
  bool ends_within(std::chrono::milliseconds time) const noexcept;

  pid_t pid_;
  UniqueFd pid_fd_;
  UniqueFd input_;
  UniqueFd output_;
  bool reaped_ = false;
  int status_ = 0;
};

// A wait status in words: "ended with status 1", "was ended by signal 9".
std::string describe_exit(int status);

// The channel over a child's pipes; owns the child.
//
// finish_writing() closes the child's input and waits for its end; what it prints meanwhile is dropped unless
// somebody reads the channel. A child that ended badly gives ErrorKind::peer: QEMU ignores its status, the caller
// decides. The stop ends the child.
std::unique_ptr<Channel> make_exec_channel(std::unique_ptr<ExecChild> child, StopSource& stop,
                                           std::string_view description);

}  // namespace migrationd::transports
