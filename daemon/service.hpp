// SPDX-License-Identifier: Apache-2.0
//
// What the service manager and the daemon say to one another: sockets passed at start, readiness, one line of
// status (sd_listen_fds(3), sd_notify(3)). Without systemd, in the build or around the process, listen_fds() is
// empty and the notifications do nothing.
//
// Thread: listen_fds() before any other thread starts (it changes the environment); the rest from any thread.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace migrationd::service {

struct PassedFd {
  UniqueFd fd;       // close-on-exec
  std::string name;  // FileDescriptorName= of the socket unit, "unknown" without
};

// Every descriptor the service manager passed, in its order; once: the variables are removed, so that a child
// does not take them for its own. Error: the passed number is nonsense.
Result<std::vector<PassedFd>> listen_fds();

// The daemon serves. `status` is what `systemctl status` shows; one line.
void notify_ready(std::string_view status);
void notify_status(std::string_view status);
void notify_stopping();

}  // namespace migrationd::service
