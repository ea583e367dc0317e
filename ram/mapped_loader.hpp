// SPDX-License-Identifier: Apache-2.0
//
// Reading memory from a mapped-ram file (docs/formats/mapped-ram.md).
//
//   1. read_mapped_setup() goes through START's list, jumping over bitmaps and pages, and proves every place before
//      any memory is prepared.
//   2. MappedLoader::load() reads the bitmaps and, by them, the pages.
//
// Pages are read by file workers (file_workers.hpp, mapped_reader.hpp), a thread for each file the loader is given,
// several reads in flight, and go into memory by the PageStore.
// What has no bit is never received; the store's finish() sees to it that it reads as zero.
//
// Errors: ErrorKind::wire with the block; a file cut off, also while it is read, is one. Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/thread_roster.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "ram/counters.hpp"
#include "ram/file_workers.hpp"
#include "ram/mapped_layout.hpp"
#include "ram/mapped_reader.hpp"
#include "ram/page_batch.hpp"
#include "ram/page_store.hpp"
#include "ram/ram_map.hpp"
#include "transports/buffered.hpp"
#include "transports/positional_file.hpp"
#include "transports/seekable_channel.hpp"

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
  // All but the files outlive it. `pages` is the same file as `file`, once for each worker: at least one. Error: direct
  // I/O demands an alignment that pages do not have; no threads.
  static Result<std::unique_ptr<MappedLoader>> make(RamMap& map, PageStore& store, transports::SeekableChannel& file,
                                                    std::vector<std::unique_ptr<transports::PositionalFile>> pages,
                                                    StopSource& stop, ThreadRoster& roster, ReceiveCounters& counters);

  // Every page of these blocks that is in the file. The map has blocks of the same names and lengths. A worker's error
  // raises the stop.
  Result<void> load(const std::vector<MappedBlock>& blocks);

 private:
  MappedLoader(RamMap& map, transports::SeekableChannel& file, ReceiveCounters& counters);
  Result<void> load_block(std::size_t index);
  Result<void> hand_over_pages(std::size_t index, const Bitmap& in_file);

  RamMap& map_;
  transports::SeekableChannel& file_;
  ReceiveCounters& counters_;
  std::vector<MappedPlace> places_;  // by the map's blocks
  PageBatch batch_;
  std::vector<MappedReader*> readers_;
  std::unique_ptr<FileWorkers> workers_;
};

}  // namespace migrationd::ram
