// SPDX-License-Identifier: Apache-2.0
//
// Logging: spdlog, set up once by main. One line per event, nothing per page.
//   error: a migration failed, or the daemon cannot serve.   warning: unusual, continued.
//   info: status changes and the summary of a migration.     debug: per phase and pass.
// Under systemd (JOURNAL_STREAM set) lines go to stderr with the "<N>" priority prefix that journald reads;
// otherwise with a timestamp.
#pragma once

#include "base/result.hpp"

#include <spdlog/spdlog.h>

#include <string_view>

namespace migrationd::log {

// `level`: trace, debug, info, warning, error, off. Thread: main, before any other thread exists.
Result<void> set_up(std::string_view level, std::string_view machine_name);

using spdlog::debug;
using spdlog::error;
using spdlog::info;
inline void warning(std::string_view text) { spdlog::warn("{}", text); }

}  // namespace migrationd::log
