// SPDX-License-Identifier: Apache-2.0
//
// PageSink: the source's seam. Where page bytes go: into the plain stream (sink_stream), into a file's page area
// (sink_mapped), over several channels (sink_multifd), later by RDMA.
//
// The order of calls, which is that of the RAM section:
//   START: write_block_list(), end_body().  PART: send()..., end_body().  END: send()..., end_memory(), end_body().
// finish_pass() stands between the passes, after end_body() or before end_memory(); the section before it, and END,
// have mark_pass_end() before their end_body().
//
// send() may wait: that is the back-pressure. Guest memory is read during send() or until the next flush; a page torn
// by a racing write is dirty again and goes in a later pass. Errors are those of the channel, or
// ErrorKind::cancelled. Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "ram/page_batch.hpp"
#include "ram/rate_limiter.hpp"

#include <cstdint>

namespace migrationd::ram {

class XbzrleSender;

class PageSink {
 public:
  PageSink() = default;
  PageSink(const PageSink&) = delete;
  PageSink& operator=(const PageSink&) = delete;
  virtual ~PageSink() = default;

  // Null: as fast as it goes (the last pass). Otherwise it outlives the sink or the next call.
  virtual void limit_by(RateLimiter* limiter) noexcept = 0;

  // From now on pages go as deltas where that is shorter (null: never), if the sink can. It outlives the sink or the
  // next call. Not before everything was sent once: a delta needs something to start from.
  virtual void compress_by(XbzrleSender*) noexcept {}

  // START's body behind the section header, without the EOS record.
  virtual Result<void> write_block_list() = 0;
  virtual Result<void> send(const PageBatch& batch) = 0;
  // Every page of the pass is out of our hands before a page of the next one can overtake it.
  virtual Result<void> finish_pass() = 0;
  // In a body, before its EOS: what comes behind this section may be pages sent before.
  virtual Result<void> mark_pass_end() { return {}; }
  // After the last pass: what the sink itself still owes the destination.
  virtual Result<void> end_memory() = 0;
  // The EOS record that ends a section's body; the footer is the caller's. Flushes nothing.
  virtual Result<void> end_body() = 0;

  // Bytes put on the wire so far, for rates and limits.
  virtual std::uint64_t bytes_sent() const noexcept = 0;
  // Those of them that did not go through the stream's writer.
  virtual std::uint64_t bytes_beside_stream() const noexcept { return 0; }
};

}  // namespace migrationd::ram
