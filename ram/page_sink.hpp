// SPDX-License-Identifier: Apache-2.0
//
// PageSink: the source's seam. Where page bytes go: into the plain stream (sink_stream), later over several channels,
// into a file's page area, or by RDMA.
//
// send() may wait: that is the back-pressure. Guest memory is read during send() or until the next flush; a page torn
// by a racing write is dirty again and goes in a later pass. Errors are those of the channel, or
// ErrorKind::cancelled. Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "ram/page_batch.hpp"

#include <cstdint>

namespace migrationd::ram {

class PageSink {
 public:
  PageSink() = default;
  PageSink(const PageSink&) = delete;
  PageSink& operator=(const PageSink&) = delete;
  virtual ~PageSink() = default;

  virtual Result<void> send(const PageBatch& batch) = 0;
  // Every page of the pass is out of our hands before a page of the next one can overtake it.
  virtual Result<void> finish_pass() = 0;
  // Bytes put on the wire so far, for rates and limits.
  virtual std::uint64_t bytes_sent() const noexcept = 0;
};

}  // namespace migrationd::ram
