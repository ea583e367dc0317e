// SPDX-License-Identifier: Apache-2.0
//
// SinkMapped: pages to their fixed places in a mapped-ram file (docs/formats/mapped-ram.md).
//
// START lists the blocks with their places and leaves the stream behind the last page area. A page that is not zero is
// written straight from guest memory, neighbours in one write, several writes in flight, and its bit is set; a page
// that is zero costs no write, and its bit is cleared, also when an earlier pass had written the page: the old bytes
// stay in the file and mean nothing. The bitmaps are written when memory is complete, in END. Until then a reader finds
// zeros.
//
// A page may be dirtied while it is being written: the file gets a mixture, the page is dirty again and comes once
// more. Two writes of one page are never in flight together, since a pass has each page once and finish_pass() waits
// for all.
//
// Thread: the mover.
#pragma once

#include "base/bitmap.hpp"
#include "ram/counters.hpp"
#include "ram/mapped_layout.hpp"
#include "ram/pacer.hpp"
#include "ram/page_sink.hpp"
#include "ram/ram_map.hpp"
#include "transports/buffered.hpp"
#include "transports/positional_file.hpp"
#include "transports/seekable_channel.hpp"

#include <memory>
#include <vector>

namespace migrationd::ram {

class SinkMapped final : public PageSink {
 public:
  // Everything but `pages` outlives it. `stream` is the channel under `writer`; `pages` is the same file, for page data
  // alone. Error: `pages` demands an alignment for direct I/O that pages do not have.
  static Result<std::unique_ptr<SinkMapped>> make(RamMap& map, transports::BufferedWriter& writer,
                                                  transports::SeekableChannel& stream,
                                                  std::unique_ptr<transports::PositionalFile> pages,
                                                  const StopSource& stop, SendCounters& counters);

  void limit_by(RateLimiter* limiter) noexcept override { pacer_.limit_by(limiter); }
  Result<void> write_block_list() override;
  Result<void> send(const PageBatch& batch) override;
  // Every write of the pass is done.
  Result<void> finish_pass() override;
  // The bitmaps.
  Result<void> end_memory() override;
  Result<void> end_body() override;
  std::uint64_t bytes_sent() const noexcept override { return counters_.transferred.get(); }
  std::uint64_t bytes_beside_stream() const noexcept override { return page_bytes_; }

 private:
  struct Block {
    MappedPlace place;
    Bitmap in_file;
  };

  SinkMapped(RamMap& map, transports::BufferedWriter& writer, transports::SeekableChannel& stream,
             std::unique_ptr<transports::PositionalFile> pages, const StopSource& stop, SendCounters& counters);
  Result<void> send_data(std::size_t block, PageRun run);
  Result<void> write_run(std::size_t block, PageRun run);
  void note_zeros(std::size_t block, PageRun run) noexcept;

  RamMap& map_;
  transports::BufferedWriter& writer_;
  transports::SeekableChannel& stream_;
  std::unique_ptr<transports::PositionalFile> pages_;
  SendCounters& counters_;
  Pacer pacer_;
  std::vector<Block> blocks_;
  std::uint64_t page_bytes_ = 0;
};

}  // namespace migrationd::ram
