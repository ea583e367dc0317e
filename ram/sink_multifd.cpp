// SPDX-License-Identifier: Apache-2.0
#include "ram/sink_multifd.hpp"

#include "ram/zero_page.hpp"

#include <utility>

namespace migrationd::ram {
namespace {}  // namespace

SinkMultifd::SinkMultifd(RamMap& map, std::unique_ptr<SinkStream> main, transports::BufferedWriter& writer,
                         MultifdSender& sender, const StopSource& stop, SendCounters& counters, Options options)
    : map_(map),
      main_(std::move(main)),
      writer_(writer),
      sender_(sender),
      counters_(counters),
      options_(options),
      pacer_(stop),
      charged_(sender.bytes_expected()) {}  // the hellos

void SinkMultifd::limit_by(RateLimiter* limiter) noexcept {
  main_->limit_by(limiter);
  pacer_.limit_by(limiter);
}

// Many jobs are under way, so what is charged is what will be sent.
Result<void> SinkMultifd::pace() {
  const std::uint64_t expected = sender_.bytes_expected();
  if (expected <= charged_) return {};
  pacer_.sent(expected - charged_);
  charged_ = expected;
  return pacer_.pace([this] { return writer_.flush(); });
}

void SinkMultifd::count() noexcept {
  const auto take = [](Counter& to, std::uint64_t now, std::uint64_t& before) {
    to.add(now - before);
    before = now;
  };
  take(counters_.transferred, sender_.bytes_sent(), counted_bytes_);
  take(counters_.normal_pages, sender_.normal_pages(), counted_normal_);
  take(counters_.zero_pages, sender_.zero_pages(), counted_zero_);
}

Result<void> SinkMultifd::hand_over() {
  if (job_.data.empty() && job_.holes.empty()) return {};
  MD_CHECK(sender_.hand_over(job_));
  count();
  return pace();
}

Result<void> SinkMultifd::add(std::size_t block, std::uint64_t page, bool hole) {
  if (job_.block != block) MD_CHECK(hand_over());
  job_.block = block;
  (hole ? job_.holes : job_.data).push_back(page * page_size);
  if (job_.data.size() + job_.holes.size() < stream::multifd_packet_pages) return {};
  return hand_over();
}

Result<void> SinkMultifd::send_data(std::size_t block, PageRun run) {
  for (std::uint64_t page = run.first; page < run.first + run.count; ++page) MD_CHECK(add(block, page, false));
  return {};
}

Result<void> SinkMultifd::send_data_without_zeros(std::size_t block, PageRun run) {
  const std::byte* const memory = map_.at(block).engine();
  zeros_.reset(block, BatchKind::holes);
  for (std::uint64_t page = run.first; page < run.first + run.count; ++page) {
    __builtin_prefetch(memory + (page + zero_prefetch_pages) * page_size);
    if (is_zero_page(memory + page * page_size)) {
      zeros_.add({page, 1});
    } else {
      MD_CHECK(add(block, page, false));
    }
  }
  return main_->send(zeros_);
}

Result<void> SinkMultifd::send_holes(std::size_t block, PageRun run) {
  for (std::uint64_t page = run.first; page < run.first + run.count; ++page) MD_CHECK(add(block, page, true));
  return {};
}

Result<void> SinkMultifd::send(const PageBatch& batch) {
  const bool hole = batch.kind() != BatchKind::data;
  if (batch.kind() == BatchKind::fresh_holes && options_.skip_holes) {
    counters_.skipped_pages.add(batch.pages());
    return {};
  }
  if (hole && options_.zeros == MultifdZeros::in_main_stream) return main_->send(batch);
  for (const PageRun& run : batch.runs()) {
    if (hole) {
      MD_CHECK(send_holes(batch.block(), run));
    } else if (options_.zeros == MultifdZeros::in_main_stream) {
      MD_CHECK(send_data_without_zeros(batch.block(), run));
    } else {
      MD_CHECK(send_data(batch.block(), run));
    }
  }
  return {};
}

Result<void> SinkMultifd::barrier() {
  MD_CHECK(hand_over());
  MD_CHECK(sender_.synchronise());
  count();
  return pace();
}

// The mark goes out at once: the destination's channels wait for it.
Result<void> SinkMultifd::mark_pass_end() {
  if (options_.sync_per_section) return {};
  MD_CHECK(barrier());
  MD_CHECK(main_->put_flush());
  return writer_.flush();
}

Result<void> SinkMultifd::end_body() {
  MD_CHECK(options_.sync_per_section ? barrier() : hand_over());
  return main_->end_body();
}

}  // namespace migrationd::ram
