// SPDX-License-Identifier: Apache-2.0
//
// What `migrationctl migrate` shows, as functions of query-migrate's answer. Pure: no terminal, no clock.
#pragma once

#include "tools/migrationctl/text.hpp"

#include <cstdint>
#include <optional>
#include <string>

namespace migrationd::ctl {

// One look at a migration. Sizes in bytes, rates in bytes per second, times in milliseconds.
struct Sample {
  std::string status;  // "none" before the first migration
  std::string error;
  std::uint64_t total = 0;
  std::uint64_t remaining = 0;
  std::uint64_t transferred = 0;
  std::uint64_t rate = 0;
  std::uint64_t dirty_rate = 0;
  std::uint64_t passes = 0;
  std::uint64_t total_time = 0;
  std::optional<std::uint64_t> downtime;
  std::optional<std::uint64_t> expected_downtime;

  static Sample from_query(const Json& query_migrate);

  // Completed, failed or cancelled; nothing more will happen by itself.
  bool ended() const { return status == "completed" || status == "failed" || status == "cancelled"; }
  // 0 to 100; the part of memory that is at the peer and clean.
  unsigned percent() const;
  // Until the rest is sent at the present rate, less what is dirtied anew; none when it would never be.
  std::optional<std::uint64_t> time_left() const;
};

// " 42% [########............]  1.20 GiB/s  left 3.40 GiB  dirty 120 MiB/s  pass 2  3.1 s left", at most `width`.
std::string progress_bar(const Sample& sample, std::size_t width);
// The same facts as one line of a log.
std::string progress_line(const Sample& sample);
// The end, for people: what was sent, how long it took, the downtime; or why it failed.
std::string outcome(const Sample& sample);
// One sample as JSON, times and sizes by name.
Json to_json(const Sample& sample);

}  // namespace migrationd::ctl
