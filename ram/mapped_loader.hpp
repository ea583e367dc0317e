// SPDX-License-Identifier: Apache-2.0
//
// Reading memory from a mapped-ram file (docs/formats/mapped-ram.md).
//
//   1. read_mapped_setup() goes through START's list, jumping over bitmaps and pages, and proves every place before
//      any memory is prepared.
//   2. MappedLoader::load() reads the bitmaps and, by them, the pages.
//
// Pages go through buffers of the loader, several reads in flight, and from there into memory by the PageStore: writing
// to a memfd that is still a hole was faster than reading straight into its mapping (wall and CPU seconds per GiB,
// Linux 6.18, ext4, one thread):
//                            from the page cache     with direct I/O
//   into the mapping            0.97   0.70             1.61   0.60
//   populated, then into it     1.05   0.80             1.82   0.58
//   buffer, then pwrite         0.74   0.60             1.40   0.44
// What has no bit is never received; the store's finish() sees to it that it reads as zero.
//
// Errors: ErrorKind::wire with the block; a file cut off, also while it is read, is one. Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "ram/counters.hpp"
#include "ram/mapped_layout.hpp"
#include "ram/page_batch.hpp"
#include "ram/page_store.hpp"
#include "ram/ram_map.hpp"
#include "transports/buffered.hpp"
#include "transports/positional_file.hpp"
#include "transports/seekable_channel.hpp"

#include <functional>
#include <memory>
#include <vector>

namespace migrationd::ram {

struct MappedBlock {
  stream::RamSetupBlock block;
  MappedPlace place;
};

// START's list up to the last page area's end, in front of the EOS record. `file` is the channel under `reader`.
Result<std::vector<MappedBlock>> read_mapped_setup(transports::BufferedReader& reader,
                                                   transports::SeekableChannel& file);

class MappedLoader {
 public:
  static constexpr std::uint64_t read_pages = 64;  // 256 KiB: stays in the cache until it is placed

  // All of them outlive it. `pages` is the same file as `file`.
  MappedLoader(RamMap& map, PageStore& store, transports::SeekableChannel& file, transports::PositionalFile& pages,
               const StopSource& stop, ReceiveCounters& counters);
  ~MappedLoader();

  // Every page of these blocks that is in the file. The map has blocks of the same names and lengths.
  Result<void> load(const std::vector<MappedBlock>& blocks);

 private:
  struct Slot {
    std::byte* memory = nullptr;
    std::size_t block = 0;
    PageRun run;
  };

  Result<void> load_block(std::size_t index, const MappedPlace& place);
  Result<void> start(std::size_t index, const MappedPlace& place, PageRun run);
  Result<void> take_one();
  Result<void> place(const Slot& slot);

  RamMap& map_;
  PageStore& store_;
  transports::SeekableChannel& file_;
  transports::PositionalFile& pages_;
  const StopSource& stop_;
  ReceiveCounters& counters_;
  std::unique_ptr<std::byte[], void (*)(std::byte*)> memory_;
  std::vector<Slot> slots_;
  std::vector<transports::PositionalFile::Tag> free_;
  std::vector<iovec> pieces_;
};

}  // namespace migrationd::ram
