// SPDX-License-Identifier: Apache-2.0
#include "daemon/service.hpp"

#ifdef MIGRATIOND_WITH_SYSTEMD

#include <fmt/format.h>
#include <systemd/sd-daemon.h>

#include <cstdlib>

namespace migrationd::service {

namespace {

// A service manager that does not listen is no reason to fail: the result is ignored on purpose.
void notify(const std::string& message) { [[maybe_unused]] const int ignored = ::sd_notify(0, message.c_str()); }

// A line break would start another assignment.
std::string one_line(std::string_view status) { return printable(status, 512); }

}  // namespace

Result<std::vector<PassedFd>> listen_fds() {
  char** names = nullptr;
  const int count = ::sd_listen_fds_with_names(1, &names);
  if (count < 0) return Error::from_errno("take the sockets the service manager passed", -count);
  std::vector<PassedFd> out;
  for (int i = 0; i < count; ++i) {
    out.push_back({UniqueFd(SD_LISTEN_FDS_START + i), names != nullptr ? names[i] : "unknown"});
    if (names != nullptr) std::free(names[i]);
  }
  std::free(names);
  return out;
}

void notify_ready(std::string_view status) { notify(fmt::format("READY=1\nSTATUS={}", one_line(status))); }
void notify_status(std::string_view status) { notify(fmt::format("STATUS={}", one_line(status))); }
void notify_stopping() { notify("STOPPING=1"); }

}  // namespace migrationd::service

#else

namespace migrationd::service {

Result<std::vector<PassedFd>> listen_fds() { return std::vector<PassedFd>(); }
void notify_ready(std::string_view) {}
void notify_status(std::string_view) {}
void notify_stopping() {}

}  // namespace migrationd::service

#endif
