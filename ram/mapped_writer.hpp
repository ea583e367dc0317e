// SPDX-License-Identifier: Apache-2.0
//
// Writing pages to their places in a mapped-ram file: what one worker of SinkMapped does, and what all of them share.
//
// A worker looks for zero pages, and writes what is between them straight from guest memory, up to 4 MiB in one
// operation, several in flight. With zero detection off it writes all it is given, zeros too.
//
// How it came to these numbers (Linux 6.18, ext4, O_DIRECT, 2 GiB into the holes of a file, one thread; two runs):
//                                                       GiB/s          CPU s/GiB
//   1 MiB, 16 in flight                              1.69, 1.69      0.047, 0.064
//   4 MiB,  8 in flight                              1.59, 1.49      0.054, 0.066
//   4 MiB,  8 in flight, one helper thread (below)   1.78, 1.80      0.043, 0.047
//   4 MiB,  8 in flight, helper at once              1.61, 1.59      0.061, 0.063
//   4 MiB,  8 in flight, memory registered           1.61, 1.31      0.074, 0.080
//   4 MiB,  8 in flight, Linux AIO                   1.63, 1.68      0.053, 0.061
// An operation that has to allocate disk space cannot be begun without waiting, so io_uring gives it to helper threads;
// several of them contend for the file's lock (transports/uring_file.hpp). Memory is not registered: each page is
// written once, and registering walks the same page tables at a higher price.
#pragma once

#include "base/bitmap.hpp"
#include "ram/counters.hpp"
#include "ram/file_workers.hpp"
#include "ram/mapped_layout.hpp"
#include "ram/ram_map.hpp"
#include "transports/positional_file.hpp"

#include <memory>
#include <vector>

namespace migrationd::ram {

// Where each block's pages lie, and which of them are in the file.
class MappedArea {
 public:
  // In the map's order, before any worker has work.
  void add(const MappedPlace& place, std::uint64_t pages) { blocks_.push_back({place, Bitmap(pages)}); }
  std::size_t size() const noexcept { return blocks_.size(); }
  const MappedPlace& place(std::size_t block) const noexcept { return blocks_[block].place; }

  // Thread: any. Pages of two threads may share a word of bits.
  void note_written(std::size_t block, PageRun run) noexcept { change(block, run, true); }
  void note_zero(std::size_t block, PageRun run) noexcept { change(block, run, false); }
  // When no worker has work.
  const Bitmap& in_file(std::size_t block) const noexcept { return blocks_[block].in_file; }

 private:
  struct Block {
    MappedPlace place;
    Bitmap in_file;
  };
  void change(std::size_t block, PageRun run, bool set) noexcept;

  std::vector<Block> blocks_;
};

class MappedWriter final : public FileWorker {
 public:
  // One operation: enough for any disk.
  static constexpr std::uint64_t write_pages = (std::uint64_t{4} << 20) / page_size;

  // Map and area outlive it. Without `detect_zeros` every page is written.
  MappedWriter(RamMap& map, MappedArea& area, std::unique_ptr<transports::PositionalFile> pages, bool detect_zeros);

  // Data, or holes: those are written as zeros, and memory is not read.
  Result<void> take(const PageBatch& batch) override;
  Result<bool> finish_one() override;
  void abandon() noexcept override { static_cast<void>(pages_->drain()); }

  // Of what was begun. Written by the worker, read by any thread.
  Counter bytes;
  Counter normal_pages;
  Counter zero_pages;

 private:
  Result<void> write_what_is_not_zero(std::size_t block, PageRun run);
  Result<void> write_run(std::size_t block, PageRun run);
  Result<void> write_zeros(std::size_t block, PageRun run);
  Result<void> write(std::size_t block, PageRun run, const std::byte* from);

  RamMap& map_;
  MappedArea& area_;
  std::unique_ptr<transports::PositionalFile> pages_;
  const bool detect_zeros_;
};

}  // namespace migrationd::ram
