// SPDX-License-Identifier: Apache-2.0
//
// What the service manager and the daemon say to one another: sockets passed at start, readiness, one line of
// status (sd_listen_fds(3), sd_notify(3)). Without systemd, in the build or around the process, listen_fds() is
// empty and the notifications do nothing.
//
// Thread: listen_fds() before any other thread starts (it changes the environment); the rest from any thread.
#pragma once

#include "base/unique_fd.hpp"

#include <sys/types.h>

#include <chrono>
#include <string_view>
#include <vector>

namespace migrationd::service {

// Whether the service manager passed sockets to this process and listen_fds() has not taken them yet.
bool is_socket_activated();
// Every descriptor the service manager passed, in its order, close-on-exec; once: the variables are removed, so
// that a child does not take them for its own. Nonsense in the variables counts as none.
std::vector<UniqueFd> listen_fds();

// The daemon serves. `status` is what `systemctl status` shows; one line.
void notify_ready(std::string_view status);
void notify_status(std::string_view status);
void notify_stopping();
// Another process of the unit is the daemon from now on. Returns when the service manager has heard of it (a few
// milliseconds, `wait` at most), so that our end is not taken for the service's.
void notify_successor(pid_t process, std::string_view status, std::chrono::milliseconds wait);

}  // namespace migrationd::service
