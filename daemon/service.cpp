// SPDX-License-Identifier: Apache-2.0
#include "daemon/service.hpp"

#include "base/result.hpp"

#ifdef MIGRATIOND_WITH_SYSTEMD

#include <fmt/format.h>
#include <systemd/sd-daemon.h>

#include <cstdint>
#include <string>

namespace migrationd::service {

namespace {

// A service manager that does not listen is no reason to fail: the result is ignored on purpose.
void notify(const std::string& message) { [[maybe_unused]] const int ignored = ::sd_notify(0, message.c_str()); }

// A line break would start another assignment.
std::string one_line(std::string_view status) { return printable(status, 512); }

}  // namespace

bool is_socket_activated() { return ::sd_listen_fds(0) > 0; }

std::vector<UniqueFd> listen_fds() {
  const int count = ::sd_listen_fds(1);
  std::vector<UniqueFd> out;
  for (int i = 0; i < count; ++i) out.emplace_back(SD_LISTEN_FDS_START + i);
  return out;
}

void notify_ready(std::string_view status) { notify(fmt::format("READY=1\nSTATUS={}", one_line(status))); }
void notify_status(std::string_view status) { notify(fmt::format("STATUS={}", one_line(status))); }
void notify_stopping() { notify("STOPPING=1"); }

void notify_successor(pid_t process, std::string_view status, std::chrono::milliseconds wait) {
  notify(fmt::format("MAINPID={}\nSTATUS={}", process, one_line(status)));
  const auto bound = std::chrono::duration_cast<std::chrono::microseconds>(wait).count();
  [[maybe_unused]] const int ignored = ::sd_notify_barrier(0, static_cast<std::uint64_t>(bound));
}

}  // namespace migrationd::service

#else

namespace migrationd::service {

bool is_socket_activated() { return false; }
std::vector<UniqueFd> listen_fds() { return {}; }
void notify_ready(std::string_view) {}
void notify_status(std::string_view) {}
void notify_stopping() {}
void notify_successor(pid_t, std::string_view, std::chrono::milliseconds) {}

}  // namespace migrationd::service

#endif
