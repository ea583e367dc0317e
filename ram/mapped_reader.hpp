// SPDX-License-Identifier: Apache-2.0
//
// Reading pages of a mapped-ram file into memory: what one worker of MappedLoader does.
//
// Two ways, by what the PageStore knows of the memory (CPU seconds per GiB, Linux 6.18, ext4, one thread):
//                                     from the page cache     with direct I/O
//   fresh:  straight into the mapping      0.97                   0.70
//           populated, then into it        1.05                   0.80
//           buffer, then pwrite            0.60                   0.44
//   there already: straight into it        0.25                   0.09
//   fresh huge pages (where memfds have them): populated, then into it   0.45, 0.29
// So fresh memory gets its pages through buffers of the worker, small enough to stay in the cache; memory that is there
// (an earlier attempt's, preallocated, hugetlb) is read into directly, in large pieces, and so are whole huge pages
// where the kernel gives them. A read that fails leaves memory that counts as not received.
#pragma once

#include "ram/counters.hpp"
#include "ram/file_workers.hpp"
#include "ram/mapped_layout.hpp"
#include "ram/page_store.hpp"
#include "ram/ram_map.hpp"
#include "transports/positional_file.hpp"

#include <memory>
#include <vector>

namespace migrationd::ram {

class MappedReader final : public FileWorker {
 public:
  static constexpr std::uint64_t buffer_pages = 64;   // 256 KiB
  static constexpr std::uint64_t direct_pages = 256;  // 1 MiB

  // `places` by the map's blocks. All but the file outlive it.
  MappedReader(RamMap& map, PageStore& store, const std::vector<MappedPlace>& places,
               std::unique_ptr<transports::PositionalFile> pages);

  // Pages that are in the file.
  Result<void> take(const PageBatch& batch) override;
  Result<bool> finish_one() override;
  void abandon() noexcept override { static_cast<void>(pages_->drain()); }

  Counter normal_pages;

 private:
  struct Slot {
    std::byte* buffer = nullptr;
    std::size_t block = 0;
    PageRun run;
    bool in_place = false;
  };

  Result<PageRun> next_piece(std::size_t block, PageRun rest, bool& in_place);
  Result<void> start(std::size_t block, PageRun run, bool in_place);
  Result<void> finish(const Slot& slot);

  RamMap& map_;
  PageStore& store_;
  const std::vector<MappedPlace>& places_;
  std::unique_ptr<std::byte[], void (*)(std::byte*)> buffers_;
  std::vector<Slot> slots_;
  std::vector<transports::PositionalFile::Tag> free_;
  std::vector<iovec> pieces_;
  std::unique_ptr<transports::PositionalFile> pages_;  // the last: it waits for what goes into the buffers
};

}  // namespace migrationd::ram
