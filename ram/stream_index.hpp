// SPDX-License-Identifier: Apache-2.0
//
// StreamIndex: goes through the RAM section of a plain stream in a file and notes where each page's bytes lie, reading
// records' headers only. 8 bytes of memory per page.
//
// The last record of a page wins, as when the stream is loaded. Pages that are deltas (XBZRLE) or compressed cannot be
// had one by one: such a stream is refused, it has to be loaded.
//
// Errors: ErrorKind::wire with block and offset; ErrorKind::plan for a stream that must be loaded. Thread: the mover.
#pragma once

#include "base/stop.hpp"
#include "ram/origin_file.hpp"
#include "ram/ram_map.hpp"
#include "transports/buffered.hpp"
#include "transports/seekable_channel.hpp"

#include <cstdint>
#include <optional>
#include <vector>

namespace migrationd::ram {

class StreamIndex {
 public:
  // Names and lengths of the blocks are the map's. All outlive it.
  StreamIndex(const RamMap& map, transports::SeekableChannel& file, std::uint64_t file_size, const StopSource& stop);

  // The records of one body up to and including EOS. `reader` is over `file` and stands in front of the first one; it
  // stands behind EOS afterwards.
  Result<void> read_body(transports::BufferedReader& reader);
  std::vector<BlockPlaces> take() && { return std::move(places_); }

 private:
  // At least `count` bytes from here on; a few when the records are pages, many when they are short.
  Result<ByteView> peek(std::size_t count);
  Result<bool> take_record();
  Result<void> note(std::uint64_t offset, std::uint64_t place, std::uint64_t pages);

  const RamMap& map_;
  transports::SeekableChannel& file_;
  const std::uint64_t file_size_;
  const StopSource& stop_;
  std::vector<BlockPlaces> places_;
  std::optional<std::size_t> current_block_;
  Bytes window_;
  std::uint64_t window_start_ = 0;
  std::size_t window_size_ = 0;
  std::uint64_t position_ = 0;
  bool sparse_ = false;  // the last record was a page
  std::uint64_t records_ = 0;
};

}  // namespace migrationd::ram
