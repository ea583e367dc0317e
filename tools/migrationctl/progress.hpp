// SPDX-License-Identifier: Apache-2.0
//
// What migrationctl shows of a migration, as functions of query-migrate's answer. Pure: no terminal, no clock.
//
// A source reports sizes and rates from its first pass on. A destination reports its status and where it listens, no
// more (as QEMU's does): nothing else is shown of it then.
#pragma once

#include "tools/migrationctl/text.hpp"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace migrationd::ctl {

// When the rest will be sent. Neither: nobody can tell yet, or there is nothing left.
struct Outlook {
  std::optional<std::uint64_t> left;  // milliseconds
  bool never = false;                 // the guest dirties memory as fast as it is sent
};

// One look at a migration. Sizes in bytes, rates in bytes per second, times in milliseconds.
struct Sample {
  std::string status;  // "none" before the first migration
  std::string error;
  bool incoming = false;
  bool measured = false;  // the sizes and rates below were reported
  std::uint64_t total = 0;
  std::uint64_t remaining = 0;
  std::uint64_t transferred = 0;
  std::uint64_t rate = 0;
  std::uint64_t dirty_rate = 0;
  std::uint64_t passes = 0;
  std::optional<std::uint64_t> total_time;
  std::optional<std::uint64_t> downtime;
  std::optional<std::uint64_t> expected_downtime;

  // `incoming`: known from elsewhere. An answer that can only be a destination's is recognised.
  static Sample from_query(const Json& query_migrate, bool incoming = false);

  // Completed, failed or cancelled; nothing more will happen by itself.
  bool ended() const { return status == "completed" || status == "failed" || status == "cancelled"; }
  // 0 to 100; the part of memory that is at the peer and clean.
  unsigned percent() const;
  // From the rates of this moment alone.
  Outlook outlook() const;
};

// The outlook for somebody who keeps looking. The rates of one moment jump, and so would a time made from them: they
// are averaged over some seconds, and what is shown changes once a second at most, except with the status.
class Forecast {
 public:
  // `now` from any fixed point, never going back. `fresh`: judged anew, for a line that is written rarely anyway.
  Outlook update(const Sample& sample, std::chrono::milliseconds now, bool fresh = false);

 private:
  void average(const Sample& sample, std::chrono::milliseconds now);
  Outlook judge(const Sample& sample) const;

  std::string status_;
  std::chrono::milliseconds averaged_at_{};
  std::chrono::milliseconds shown_at_{};
  std::optional<double> rate_;
  double dirty_rate_ = 0;
  Outlook shown_;
};

// " 42% [########............]  1.20 GiB/s  left 3.40 GiB  dirty 120 MiB/s  pass 2  3.1 s left", at most `width`.
std::string progress_bar(const Sample& sample, const Outlook& outlook, std::size_t width);
// The same facts as one line of a log.
std::string progress_line(const Sample& sample, const Outlook& outlook);
// The end, for people: what was sent, how long it took, the downtime; or why it failed.
std::string outcome(const Sample& sample);
// One sample as JSON, times and sizes by name; of a destination what it reported.
Json to_json(const Sample& sample, const Outlook& outlook);

}  // namespace migrationd::ctl
