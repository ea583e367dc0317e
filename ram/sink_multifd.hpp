// SPDX-License-Identifier: Apache-2.0
//
// SinkMultifd: pages over several channels (multifd.md sections 7, 8 and 13).
//
// Pages of batches are packed into jobs of a packet's size for the MultifdSender, however small the batches are. Zero
// pages go where the zero mode says: into packets, or as records into the main stream (the only way that QEMU 7.2
// understands), or nobody looks for them.
//
// The barrier: SYNC on every channel behind all pages, everything written, and then the mark in the main stream, a
// FLUSH record or the section's EOS. It stands between any two sends of one page: mark_pass_end() makes one, or each
// end_body(). The destination cannot be told which kind of mark it is to expect; its machine type decides, so ours does
// (MultifdRules in the daemon).
//
// Rate: what was handed over is charged by estimate, and put right when it is sent.
// Thread: the mover.
#pragma once

#include "ram/counters.hpp"
#include "ram/multifd_sender.hpp"
#include "ram/pacer.hpp"
#include "ram/page_sink.hpp"
#include "ram/sink_stream.hpp"

#include <cstdint>
#include <memory>

namespace migrationd::ram {

enum class MultifdZeros : std::uint8_t {
  none,            // not looked for: every page has its bytes sent
  in_main_stream,  // by the mover, as zero records
  in_packets,      // by the channels' threads
};

class SinkMultifd final : public PageSink {
 public:
  struct Options {
    MultifdZeros zeros = MultifdZeros::in_packets;
    // As in SinkStream.
    bool skip_holes = false;
    // The barrier's mark is every section's EOS, and there are no FLUSH records.
    bool sync_per_section = false;
  };
  // All but `main`, which writes the main stream's records, outlive it.
  SinkMultifd(RamMap& map, std::unique_ptr<SinkStream> main, transports::BufferedWriter& writer, MultifdSender& sender,
              const StopSource& stop, SendCounters& counters, Options options);

  void limit_by(RateLimiter* limiter) noexcept override;
  Result<void> write_block_list() override { return main_->write_block_list(); }
  Result<void> send(const PageBatch& batch) override;
  // The barrier stands in the body before: mark_pass_end().
  Result<void> finish_pass() override { return hand_over(); }
  Result<void> mark_pass_end() override;
  Result<void> end_memory() override { return {}; }
  Result<void> end_body() override;
  std::uint64_t bytes_sent() const noexcept override { return counters_.transferred.get(); }
  std::uint64_t bytes_beside_stream() const noexcept override { return sender_.bytes_sent(); }

 private:
  Result<void> send_data(std::size_t block, PageRun run);
  Result<void> send_data_without_zeros(std::size_t block, PageRun run);
  Result<void> send_holes(std::size_t block, PageRun run);
  Result<void> add(std::size_t block, std::uint64_t page, bool hole);
  Result<void> hand_over();
  Result<void> barrier();
  Result<void> pace();
  void count() noexcept;

  RamMap& map_;
  std::unique_ptr<SinkStream> main_;
  transports::BufferedWriter& writer_;
  MultifdSender& sender_;
  SendCounters& counters_;
  const Options options_;
  Pacer pacer_;
  MultifdJob job_;
  PageBatch zeros_;            // of the run at hand, for the main stream
  std::uint64_t charged_ = 0;  // bytes the limiter knows of
  // What of the sender's counts is in counters_.
  std::uint64_t counted_bytes_ = 0;
  std::uint64_t counted_normal_ = 0;
  std::uint64_t counted_zero_ = 0;
};

}  // namespace migrationd::ram
