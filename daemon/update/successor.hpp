// SPDX-License-Identifier: Apache-2.0
//
// The process that is to replace this one. Until it has taken over we can end it, and know that it is gone; destroyed
// before release(), it is ended.
//
// It is not our child but our parent's (CLONE_PARENT), as we are: a service manager supervises a main process that it
// is the parent of, and ends any other without waiting (systemd 252: SIGKILL at once). So it is held by a pidfd. Who
// started us reaps it, as it reaps us.
//
// Thread: any, one call at a time waits for another.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace migrationd::update {

class Successor {
 public:
  // Starts `program` with our environment, directory and standard descriptors, no signal blocked, and `channel` under a
  // number of its own, which is appended to `arguments` as --take-over=N. Error: it cannot be executed, or we are
  // process 1.
  static Result<std::unique_ptr<Successor>> start(const std::string& program, std::vector<std::string> arguments,
                                                  UniqueFd channel);
  Successor(const Successor&) = delete;
  Successor& operator=(const Successor&) = delete;
  ~Successor();

  pid_t process() const noexcept { return process_; }
  // Kills it, unless it has ended by itself or does so within `wait`, and waits for its end. True: by itself.
  bool end(std::chrono::milliseconds wait) noexcept;
  // It stands alone from now on.
  void release() noexcept;

 private:
  Successor(pid_t process, UniqueFd handle) noexcept : process_(process), handle_(std::move(handle)) {}

  const pid_t process_;
  const UniqueFd handle_;  // a pidfd
  std::mutex mutex_;       // ours_
  bool ours_ = true;
};

}  // namespace migrationd::update
