// SPDX-License-Identifier: Apache-2.0
//
// SinkMapped: pages to their fixed places in a mapped-ram file (docs/formats/mapped-ram.md).
//
// START lists the blocks with their places and leaves the stream behind the last page area. Pages go to file workers
// (file_workers.hpp, mapped_writer.hpp), a thread for each file it is given: one that is not zero is written straight
// from guest memory, neighbours in one write, several writes in flight, and its bit is set; one that is zero costs no
// write, and its bit is cleared, also when an earlier pass had written the page: the old bytes stay in the file and
// mean nothing. The bitmaps are written when memory is complete, in END. Until then a reader finds zeros.
//
// Without zero detection every page is written and every bit set, as QEMU does it with zero-page-detection=none. What
// memory never had is left out there too, if the file reads as zeros where nothing was written.
//
// A page may be dirtied while it is being written: the file gets a mixture, the page is dirty again and comes once
// more. Two writes of one page are never in flight together, since a pass has each page once and finish_pass() waits
// for all.
//
// Thread: the mover.
#pragma once

#include "base/thread_roster.hpp"
#include "ram/counters.hpp"
#include "ram/file_workers.hpp"
#include "ram/mapped_layout.hpp"
#include "ram/mapped_writer.hpp"
#include "ram/pacer.hpp"
#include "ram/page_sink.hpp"
#include "ram/ram_map.hpp"
#include "transports/buffered.hpp"
#include "transports/positional_file.hpp"
#include "transports/seekable_channel.hpp"

#include <memory>
#include <optional>
#include <vector>

namespace migrationd::ram {

class SinkMapped final : public PageSink {
 public:
  struct Options {
    bool detect_zeros = true;
    bool file_is_empty = true;  // it reads as zeros where nothing was written: no block device
  };

  // Everything but `pages` outlives it. `stream` is the channel under `writer`; `pages` is the same file, for page data
  // alone, once for each worker: at least one. Error: direct I/O demands an alignment that pages do not have; no
  // threads.
  static Result<std::unique_ptr<SinkMapped>> make(RamMap& map, transports::BufferedWriter& writer,
                                                  transports::SeekableChannel& stream,
                                                  std::vector<std::unique_ptr<transports::PositionalFile>> pages,
                                                  StopSource& stop, ThreadRoster& roster, SendCounters& counters,
                                                  Options options);

  void limit_by(RateLimiter* limiter) noexcept override { pacer_.limit_by(limiter); }
  Result<void> write_block_list() override;
  Result<void> send(const PageBatch& batch) override;
  // Every write of the pass is done.
  Result<void> finish_pass() override;
  // The bitmaps.
  Result<void> end_memory() override;
  Result<void> end_body() override;
  std::uint64_t bytes_sent() const noexcept override { return counters_.transferred.get(); }
  std::uint64_t bytes_beside_stream() const noexcept override { return counted_bytes_; }

  // Why a worker ended the migration: it raises the stop, and everything else fails with `cancelled`.
  std::optional<Error> failure() const { return workers_->failure(); }

 private:
  SinkMapped(RamMap& map, transports::BufferedWriter& writer, transports::SeekableChannel& stream,
             const StopSource& stop, SendCounters& counters, Options options);
  Result<void> add(BatchKind kind, std::size_t block, PageRun run);
  Result<void> hand_over();
  Result<void> pace();
  void count() noexcept;
  Result<void> wait_for_workers();

  RamMap& map_;
  transports::BufferedWriter& writer_;
  transports::SeekableChannel& stream_;
  SendCounters& counters_;
  const Options options_;
  Pacer pacer_;
  MappedArea area_;
  PageBatch batch_;  // gathered for a worker
  std::vector<MappedWriter*> writers_;
  std::unique_ptr<FileWorkers> workers_;
  // What of the workers' counts is in counters_.
  std::uint64_t counted_bytes_ = 0;
  std::uint64_t counted_normal_ = 0;
  std::uint64_t counted_zero_ = 0;
  std::uint64_t charged_ = 0;  // told to the pacer
};

}  // namespace migrationd::ram
