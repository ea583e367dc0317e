// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/progress.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::ctl {

namespace {

std::uint64_t number(const Json& from, const char* name) {
  const auto found = from.find(name);
  return found != from.end() && found->is_number_unsigned() ? found->get<std::uint64_t>() : 0;
}

std::optional<std::uint64_t> maybe_number(const Json& from, const char* name) {
  if (!from.contains(name)) return std::nullopt;
  return number(from, name);
}

std::string left_text(const Sample& sample) {
  if (sample.status == "pre-switchover") return "waits for migrate-continue";
  if (sample.status == "setup") return "connecting";
  if (const auto left = sample.time_left()) return duration_text(*left) + " left";
  if (sample.rate == 0 || sample.remaining == 0) return "";
  return "dirtied faster than sent";
}

}  // namespace

Sample Sample::from_query(const Json& query) {
  Sample out;
  out.status = query.value("status", "none");
  out.error = query.value("error-desc", "");
  out.total_time = number(query, "total-time");
  out.downtime = maybe_number(query, "downtime");
  out.expected_downtime = maybe_number(query, "expected-downtime");
  const auto ram = query.find("ram");
  if (ram == query.end() || !ram->is_object()) return out;
  out.total = number(*ram, "total");
  out.remaining = number(*ram, "remaining");
  out.transferred = number(*ram, "transferred");
  out.passes = number(*ram, "dirty-sync-count");
  out.dirty_rate = number(*ram, "dirty-pages-rate") * number(*ram, "page-size");
  const auto mbps = ram->find("mbps");  // 10^6 bits per second
  if (mbps != ram->end() && mbps->is_number()) out.rate = static_cast<std::uint64_t>(mbps->get<double>() * 1e6 / 8);
  return out;
}

unsigned Sample::percent() const {
  if (status == "completed") return 100;
  if (total == 0) return 0;
  const auto clean = total - std::min(remaining, total);
  // Rounded down, and never 100 before the end.
  return std::min(99u, static_cast<unsigned>(static_cast<double>(clean) / static_cast<double>(total) * 100));
}

std::optional<std::uint64_t> Sample::time_left() const {
  if (remaining == 0 || rate <= dirty_rate) return std::nullopt;
  return static_cast<std::uint64_t>(static_cast<double>(remaining) * 1000 / static_cast<double>(rate - dirty_rate));
}

std::string progress_bar(const Sample& sample, std::size_t width) {
  constexpr std::size_t cells = 20;
  const unsigned percent = sample.percent();
  const std::size_t full = percent * cells / 100;
  std::string out = fmt::format("{:>3}% [{}{}]  {}/s  left {}", percent, std::string(full, '#'),
                                std::string(cells - full, '.'), size_text(sample.rate), size_text(sample.remaining));
  if (sample.dirty_rate > 0) out += fmt::format("  dirty {}/s", size_text(sample.dirty_rate));
  out += fmt::format("  pass {}", sample.passes);
  if (sample.status != "active") out += fmt::format("  {}", sample.status);
  if (const std::string left = left_text(sample); !left.empty()) out += fmt::format("  {}", left);
  if (out.size() > width) out.resize(width);
  return out;
}

std::string progress_line(const Sample& sample) {
  std::string out = fmt::format("{}: {}%, {} sent at {}/s, {} remaining, dirty {}/s, pass {}", sample.status,
                                sample.percent(), size_text(sample.transferred), size_text(sample.rate),
                                size_text(sample.remaining), size_text(sample.dirty_rate), sample.passes);
  if (const std::string left = left_text(sample); !left.empty()) out += ", " + left;
  return out;
}

std::string outcome(const Sample& sample) {
  if (sample.status == "failed")
    return "migration failed: " + (sample.error.empty() ? "no reason given" : sample.error);
  if (sample.status == "cancelled") return "migration cancelled";
  if (sample.status != "completed") return "migration is " + sample.status;
  std::string out = fmt::format("migration completed in {}", duration_text(sample.total_time));
  if (sample.transferred > 0) {
    const auto rate = static_cast<std::uint64_t>(static_cast<double>(sample.transferred) * 1000 /
                                                 static_cast<double>(std::max<std::uint64_t>(sample.total_time, 1)));
    out += fmt::format(": {} sent at {}/s, {} passes", size_text(sample.transferred), size_text(rate), sample.passes);
  }
  if (sample.downtime) out += fmt::format(", downtime {}", duration_text(*sample.downtime));
  return out;
}

Json to_json(const Sample& sample) {
  Json out = {
      {"status", sample.status},         {"percent", sample.percent()},       {"total", sample.total},
      {"remaining", sample.remaining},   {"transferred", sample.transferred}, {"rate", sample.rate},
      {"dirty-rate", sample.dirty_rate}, {"passes", sample.passes},           {"total-time", sample.total_time}};
  if (const auto left = sample.time_left()) out["time-left"] = *left;
  if (sample.downtime) out["downtime"] = *sample.downtime;
  if (sample.expected_downtime) out["expected-downtime"] = *sample.expected_downtime;
  if (!sample.error.empty()) out["error-desc"] = sample.error;
  return out;
}

}  // namespace migrationd::ctl
