// SPDX-License-Identifier: Apache-2.0
//
// PrecopySender: the RAM section on its way out. START with the block list, PARTs while the guest runs, END with what
// was left; the measurements that say when to stop.
//
// A pass begins with a synchronisation of the dirty log and sweeps over what is dirty. A PART is a bounded piece of a
// pass, so that limits, cancel and policy are looked at every 50 ms at the latest.
//
// Thread: the mover.
#pragma once

#include "daemon/machine/machine.hpp"
#include "daemon/migration/live_limits.hpp"
#include "daemon/migration/mover_events.hpp"
#include "daemon/migration/plan.hpp"
#include "daemon/migration/switchover_policy.hpp"
#include "ram/counters.hpp"
#include "ram/page_scanner.hpp"
#include "ram/page_sink.hpp"
#include "ram/rate_limiter.hpp"
#include "ram/xbzrle_sender.hpp"
#include "transports/buffered.hpp"

#include <functional>
#include <memory>

namespace migrationd::migration {

// Makes what the pages go through; it counts in the counters it is given, which outlive it.
using SinkMaker = std::function<Result<std::unique_ptr<ram::PageSink>>(ram::SendCounters& counters)>;

class PrecopySender {
 public:
  // All but the maker outlive it.
  static Result<std::unique_ptr<PrecopySender>> make(const SourcePlan& plan, Machine& machine,
                                                     transports::BufferedWriter& writer, const LiveLimits& limits,
                                                     Progress& progress, MoverEvents& events, StopSource& stop,
                                                     const SinkMaker& make_sink);
  // Lifts the write protection and the throttle.
  ~PrecopySender();

  // START with the block list; starts the dirty log and the first pass.
  Result<void> send_start();
  // A PART: at most 50 ms of pages. True: it is time to synchronise, because the sweep is over or because what is
  // left of it would fit into the downtime limit.
  Result<bool> send_part();
  // Fetches what the guest wrote since the last time and starts a new sweep over all that is dirty. True: the machine
  // may be stopped now.
  Result<bool> synchronise();
  // What went out so far, pages beside the stream included.
  std::uint64_t total_sent() const noexcept { return writer_.total_written() + sink_->bytes_beside_stream(); }
  std::uint64_t remaining_bytes() const noexcept { return scanner_.remaining_bytes(); }
  // The machine is stopped and goes on by postcopy: takes in what it wrote last. What is dirty then is what the
  // destination lacks; none: all of it, for no page was sent. Nothing is sent any more.
  Result<std::optional<ram::DirtyBitmaps>> freeze();
  // The machine is stopped: END with everything that is left, at full speed.
  Result<void> send_end();

 private:
  PrecopySender(const SourcePlan& plan, Machine& machine, transports::BufferedWriter& writer, const LiveLimits& limits,
                Progress& progress, MoverEvents& events, StopSource& stop, ram::PageScanner scanner);

  // `pass_ends`: what comes next may be pages that were sent before.
  Result<void> finish_section(bool pass_ends);
  Result<void> leave_out_what_stays();
  Result<void> prepare_deltas();
  // Null: nothing can write, or nobody asks what was written.
  ram::DirtyLog* dirty_log() const noexcept;
  Result<void> append(const ByteWriter& bytes);
  void count_pass();
  void measure(std::uint64_t dirtied_pages);
  void brake_guest(std::uint64_t dirtied_pages);
  void publish();
  SwitchoverLimits switchover_limits() const noexcept;

  const SourcePlan plan_;
  Machine& machine_;
  transports::BufferedWriter& writer_;
  const LiveLimits& limits_;
  Progress& progress_;
  MoverEvents& events_;
  StopSource& stop_;

  const std::uint32_t section_id_;
  ram::SendCounters counters_;
  ram::RateLimiter limiter_;
  ram::PageScanner scanner_;
  std::unique_ptr<ram::PageSink> sink_;
  BandwidthMeter meter_;
  SwitchoverPolicy policy_;
  bool all_sent_ = false;                      // the first sweep reached its end
  std::unique_ptr<ram::XbzrleSender> xbzrle_;  // once all was sent, if deltas are wanted
  AutoConverge auto_converge_;
  Clock::time_point last_sync_ = Clock::now();
  // Since auto-converge last judged.
  Clock::time_point judged_at_ = Clock::now();
  std::uint64_t judged_sent_ = 0;
  std::uint64_t judged_dirtied_ = 0;  // bytes
};

}  // namespace migrationd::migration
