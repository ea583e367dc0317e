// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/progress.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

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

// How long a rate counts: three times as long it is forgotten. A pass's dirty rate is measured at its end, so it moves
// in steps that last about as long.
constexpr double memory_ms = 3000;
constexpr auto text_holds = std::chrono::milliseconds(1000);
// "never" is taken back when this part of the rate is to spare, so that a migration on the edge does not flicker.
constexpr double spare_part = 0.05;

Outlook outlook_from(std::uint64_t remaining, double rate, double dirty_rate, double spare) {
  Outlook out;
  if (rate <= 0 || remaining == 0) return out;
  if (rate - dirty_rate <= spare) {
    out.never = true;
  } else {
    out.left = static_cast<std::uint64_t>(std::min(static_cast<double>(remaining) * 1000 / (rate - dirty_rate), 1e18));
  }
  return out;
}

std::string left_text(const Sample& sample, const Outlook& outlook) {
  if (sample.status == "pre-switchover") return "waits for migrate-continue";
  if (outlook.left) return duration_text(*outlook.left) + " left";
  return outlook.never ? "dirtied faster than sent" : "";
}

// All that can be said without numbers.
std::string bare_line(const Sample& sample) {
  if (sample.status == "setup") return sample.incoming ? "setup: waiting for the source" : "setup: connecting";
  if (sample.status == "active" && sample.incoming) return "active: receiving";
  return sample.status;
}

}  // namespace

Sample Sample::from_query(const Json& query, bool incoming) {
  Sample out;
  out.status = query.value("status", "none");
  out.error = query.value("error-desc", "");
  out.total_time = maybe_number(query, "total-time");
  out.downtime = maybe_number(query, "downtime");
  out.expected_downtime = maybe_number(query, "expected-downtime");
  const auto ram = query.find("ram");
  out.measured = ram != query.end() && ram->is_object();
  // A source always reports its numbers in these states, and never where it listens.
  const bool has_numbers = out.status == "active" || out.status == "device" || out.status == "completed";
  out.incoming = incoming || query.contains("socket-address") || (has_numbers && !out.measured);
  if (!out.measured) return out;
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

Outlook Sample::outlook() const {
  return outlook_from(remaining, static_cast<double>(rate), static_cast<double>(dirty_rate), 0);
}

Outlook Forecast::update(const Sample& sample, std::chrono::milliseconds now, bool fresh) {
  const bool changed = sample.status != status_;
  if (changed) {
    status_ = sample.status;
    rate_.reset();
  }
  average(sample, now);
  const bool nothing_shown = !shown_.left && !shown_.never;
  if (fresh || changed || nothing_shown || now - shown_at_ >= text_holds) {
    shown_ = judge(sample);
    shown_at_ = now;
  }
  return shown_;
}

void Forecast::average(const Sample& sample, std::chrono::milliseconds now) {
  const auto rate = static_cast<double>(sample.rate);
  const auto dirty_rate = static_cast<double>(sample.dirty_rate);
  if (!rate_) {
    // Zero: no rate has been measured yet.
    if (sample.rate == 0) return;
    rate_ = rate;
    dirty_rate_ = dirty_rate;
  } else {
    const double weight = 1 - std::exp(-static_cast<double>((now - averaged_at_).count()) / memory_ms);
    *rate_ += weight * (rate - *rate_);
    dirty_rate_ += weight * (dirty_rate - dirty_rate_);
  }
  averaged_at_ = now;
}

Outlook Forecast::judge(const Sample& sample) const {
  if (!rate_) return {};
  return outlook_from(sample.remaining, *rate_, dirty_rate_, shown_.never ? *rate_ * spare_part : 0);
}

std::string progress_bar(const Sample& sample, const Outlook& outlook, std::size_t width) {
  if (!sample.measured) return bare_line(sample).substr(0, width);
  std::string facts = fmt::format("  {}/s  left {}", size_text(sample.rate), size_text(sample.remaining));
  if (sample.dirty_rate > 0) facts += fmt::format("  dirty {}/s", size_text(sample.dirty_rate));
  facts += fmt::format("  pass {}", sample.passes);
  if (sample.status != "active") facts += fmt::format("  {}", sample.status);
  if (const std::string left = left_text(sample, outlook); !left.empty()) facts += fmt::format("  {}", left);
  // The bar gives way to the facts: with all of them it has some ten cells in 80 columns.
  constexpr std::size_t frame = 7;  // " 42% []"
  const std::size_t taken = std::min(width, frame + facts.size());
  const std::size_t cells = std::min<std::size_t>(20, width - taken);
  const unsigned percent = sample.percent();
  const std::size_t full = percent * cells / 100;
  std::string out =
      fmt::format("{:>3}% [{}{}]{}", percent, std::string(full, '#'), std::string(cells - full, '.'), facts);
  if (out.size() > width) out.resize(width);
  return out;
}

std::string progress_line(const Sample& sample, const Outlook& outlook) {
  if (!sample.measured) return bare_line(sample);
  std::string out = fmt::format("{}: {}%, {} sent at {}/s, {} remaining, dirty {}/s, pass {}", sample.status,
                                sample.percent(), size_text(sample.transferred), size_text(sample.rate),
                                size_text(sample.remaining), size_text(sample.dirty_rate), sample.passes);
  if (const std::string left = left_text(sample, outlook); !left.empty()) out += ", " + left;
  return out;
}

std::string outcome(const Sample& sample) {
  if (sample.status == "failed")
    return "migration failed: " + (sample.error.empty() ? "no reason given" : sample.error);
  if (sample.status == "cancelled") return "migration cancelled";
  if (sample.status != "completed") return "migration is " + sample.status;
  std::string out = "migration completed";
  if (sample.total_time) out += " in " + duration_text(*sample.total_time);
  if (sample.total_time && sample.transferred > 0) {
    const auto rate = static_cast<std::uint64_t>(static_cast<double>(sample.transferred) * 1000 /
                                                 static_cast<double>(std::max<std::uint64_t>(*sample.total_time, 1)));
    out += fmt::format(": {} sent at {}/s, {} passes", size_text(sample.transferred), size_text(rate), sample.passes);
  }
  if (sample.downtime) out += fmt::format(", downtime {}", duration_text(*sample.downtime));
  return out;
}

Json to_json(const Sample& sample, const Outlook& outlook) {
  Json out = {{"status", sample.status}};
  if (sample.measured || !sample.incoming) {
    out.update({{"percent", sample.percent()},
                {"total", sample.total},
                {"remaining", sample.remaining},
                {"transferred", sample.transferred},
                {"rate", sample.rate},
                {"dirty-rate", sample.dirty_rate},
                {"passes", sample.passes},
                {"total-time", sample.total_time.value_or(0)}});
  }
  if (outlook.left) out["time-left"] = *outlook.left;
  if (sample.downtime) out["downtime"] = *sample.downtime;
  if (sample.expected_downtime) out["expected-downtime"] = *sample.expected_downtime;
  if (!sample.error.empty()) out["error-desc"] = sample.error;
  return out;
}

}  // namespace migrationd::ctl
