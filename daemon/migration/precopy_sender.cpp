// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/precopy_sender.hpp"

#include "protocol/stream/commands.hpp"
#include "protocol/stream/sections.hpp"
#include "ram/run_pass.hpp"

#include <fmt/format.h>

#include <utility>
#include <vector>

namespace migrationd::migration {
namespace {

// What auto-converge looks at between two judgements: long enough to average over several passes of a small guest.
constexpr auto judgement_period = std::chrono::seconds(1);
// A sweep is not broken off more often than this to look at the dirty log: that look costs time too.
constexpr auto resynchronise_after = std::chrono::seconds(1);

}  // namespace

Result<std::unique_ptr<PrecopySender>> PrecopySender::make(const SourcePlan& plan, Machine& machine,
                                                           transports::BufferedWriter& writer, const LiveLimits& limits,
                                                           Progress& progress, MoverEvents& events, StopSource& stop,
                                                           const SinkMaker& make_sink) {
  MD_TRY(auto scanner, ram::PageScanner::of(machine.ram()));
  std::unique_ptr<PrecopySender> sender(
      new PrecopySender(plan, machine, writer, limits, progress, events, stop, std::move(scanner)));
  MD_TRY(sender->sink_, make_sink(sender->counters_));
  sender->sink_->limit_by(&sender->limiter_);
  return sender;
}

PrecopySender::PrecopySender(const SourcePlan& plan, Machine& machine, transports::BufferedWriter& writer,
                             const LiveLimits& limits, Progress& progress, MoverEvents& events, StopSource& stop,
                             ram::PageScanner scanner)
    : plan_(plan),
      machine_(machine),
      writer_(writer),
      limits_(limits),
      progress_(progress),
      events_(events),
      stop_(stop),
      section_id_(machine.ram_section_id()),
      limiter_(limits.max_bandwidth),
      scanner_(std::move(scanner)) {}

PrecopySender::~PrecopySender() {
  if (auto* log = dirty_log()) log->stop();
  machine_.throttle(0);
}

// A guest that stands still from the start needs none.
ram::DirtyLog* PrecopySender::dirty_log() const noexcept {
  return plan_.stopped_from_start ? nullptr : machine_.dirty_log();
}

Result<void> PrecopySender::append(const ByteWriter& bytes) { return writer_.append(bytes.view()); }

Result<void> PrecopySender::finish_section(bool pass_ends) {
  if (pass_ends) MD_CHECK(sink_->mark_pass_end());
  MD_CHECK(sink_->end_body());
  ByteWriter footer;
  stream::encode_footer(footer, section_id_);
  MD_CHECK(append(footer));
  return writer_.flush();
}

void PrecopySender::count_pass() {
  const auto number = progress_.passes.load() + 1;
  progress_.passes = number;
  events_.pass(number);
}

// What is not sent is no part of the numbers either, as in QEMU.
Result<void> PrecopySender::leave_out_what_stays() {
  const ram::RamMap& ram = machine_.ram();
  std::vector<bool> stays(ram.size(), plan_.by_descriptors);
  std::uint64_t total = 0;
  for (std::size_t i = 0; i < ram.size(); ++i) {
    if (plan_.ignore_shared && ram.at(i).is_named_file()) {
      stays[i] = true;
      // The receiver compares it, and would refuse a made-up one with a text that helps nobody.
      if (!plan_.by_descriptors && !ram.at(i).guest_address()) {
        return machine_error(
            fmt::format("block '{}' stays in its file, but nobody knows where its guest sees it: the stream that "
                        "brought the machine "
                        "had no addresses (x-ignore-shared was off)",
                        printable(ram.at(i).name())));
      }
    }
    if (!stays[i]) total += ram.at(i).length();
  }
  progress_.ram_total = total;
  scanner_.leave_out(std::move(stays));
  return {};
}

Result<void> PrecopySender::send_start() {
  MD_CHECK(leave_out_what_stays());
  if (auto* log = dirty_log()) MD_CHECK(log->start());
  MD_CHECK(scanner_.begin_first_pass());
  last_sync_ = judged_at_ = Clock::now();
  count_pass();

  ByteWriter out;
  stream::encode_section_start(out, {section_id_, "ram", 0, stream::ram_section_version});
  MD_CHECK(append(out));
  MD_CHECK(sink_->write_block_list());
  MD_CHECK(finish_section(true));
  publish();
  return {};
}

Result<bool> PrecopySender::send_part() {
  ByteWriter head;
  stream::encode_section_part(head, section_id_);
  MD_CHECK(append(head));
  MD_TRY(const ram::PassEnd end, ram::run_pass(scanner_, *sink_, stop_, {}));
  publish();
  const bool swept = end == ram::PassEnd::swept;
  all_sent_ = all_sent_ || swept;
  // The limit may have been raised in the middle of a long sweep.
  const bool would_fit = all_sent_ && Clock::now() - last_sync_ >= resynchronise_after &&
                         within_limit(scanner_.remaining_bytes(), meter_, switchover_limits());
  const bool pass_ends = swept || would_fit;
  MD_CHECK(finish_section(pass_ends));
  return pass_ends;
}

Result<bool> PrecopySender::synchronise() {
  MD_CHECK(sink_->finish_pass());
  MD_CHECK(prepare_deltas());
  MD_TRY(const std::uint64_t dirtied, scanner_.begin_pass(dirty_log()));
  count_pass();
  measure(dirtied);
  if (plan_.auto_converge) brake_guest(dirtied);
  publish();
  return policy_.may_switch_over(scanner_.remaining_bytes(), all_sent_, meter_, switchover_limits());
}

// Between two passes: the sink has flushed, nothing refers to the cache.
Result<void> PrecopySender::prepare_deltas() {
  if (!plan_.xbzrle || !all_sent_) return {};
  if (!xbzrle_) xbzrle_ = std::make_unique<ram::XbzrleSender>(machine_.ram(), progress_.xbzrle);
  sink_->compress_by(xbzrle_.get());
  return xbzrle_->begin_pass(limits_.xbzrle_cache_size);
}

void PrecopySender::measure(std::uint64_t dirtied_pages) {
  const auto now = Clock::now();
  const std::chrono::duration<double> elapsed = now - last_sync_;
  last_sync_ = now;
  if (elapsed.count() > 0) {
    progress_.dirty_pages_rate = static_cast<std::uint64_t>(static_cast<double>(dirtied_pages) / elapsed.count());
  }
  const auto expected = expected_downtime(scanner_.remaining_bytes(), meter_, switchover_limits());
  if (expected) progress_.expected_downtime_ms = expected->count();
}

void PrecopySender::brake_guest(std::uint64_t dirtied_pages) {
  judged_dirtied_ += dirtied_pages * ram::page_size;
  const auto now = Clock::now();
  if (now - judged_at_ < judgement_period) return;
  ThrottleSettings settings;
  settings.trigger_threshold = limits_.throttle_trigger_threshold;
  settings.initial = limits_.cpu_throttle_initial;
  settings.increment = limits_.cpu_throttle_increment;
  settings.maximum = limits_.max_cpu_throttle;
  settings.tailslow = limits_.cpu_throttle_tailslow;
  const std::uint64_t sent = total_sent();
  if (const auto percent = auto_converge_.on_sync(judged_dirtied_, sent - judged_sent_, settings)) {
    machine_.throttle(*percent);
    progress_.throttle_percent = *percent;
  }
  judged_at_ = now;
  judged_sent_ = sent;
  judged_dirtied_ = 0;
}

SwitchoverLimits PrecopySender::switchover_limits() const noexcept {
  return {std::chrono::milliseconds(limits_.downtime_limit_ms.load()), limits_.avail_switchover_bandwidth.load()};
}

void PrecopySender::publish() {
  const std::uint64_t sent = total_sent();
  const std::uint64_t pages = counters_.normal_pages.get() + counters_.zero_pages.get();
  meter_.sample(Clock::now().time_since_epoch(), sent, pages);
  progress_.transferred = sent;
  progress_.remaining = scanner_.remaining_bytes();
  progress_.normal_pages = counters_.normal_pages.get();
  progress_.zero_pages = counters_.zero_pages.get();
  if (meter_.measured()) {
    progress_.bytes_per_second = meter_.bytes_per_second();
    progress_.pages_per_second = meter_.pages_per_second();
  }
}

Result<std::optional<ram::DirtyBitmaps>> PrecopySender::freeze() {
  progress_.precopy_bytes = counters_.transferred.get();
  MD_TRY([[maybe_unused]] const bool may_stop, synchronise());
  MD_CHECK(writer_.flush());
  return scanner_.take_dirty();
}

Result<void> PrecopySender::send_end() {
  const std::uint64_t before = counters_.transferred.get();
  progress_.precopy_bytes = before;
  sink_->limit_by(nullptr);
  MD_TRY([[maybe_unused]] const bool may_stop, synchronise());

  ByteWriter head;
  if (machine_.configuration().switchover_start) stream::encode_command(head, stream::command::SwitchoverStart{});
  stream::encode_section_end(head, section_id_);
  MD_CHECK(append(head));
  MD_CHECK(ram::run_whole_pass(scanner_, *sink_, stop_));
  MD_CHECK(sink_->finish_pass());
  MD_CHECK(sink_->end_memory());
  MD_CHECK(finish_section(true));
  progress_.downtime_bytes = counters_.transferred.get() - before;
  publish();
  return {};
}

}  // namespace migrationd::migration
