// SPDX-License-Identifier: Apache-2.0
//
// Where each block's bitmap and pages lie in a mapped-ram file (docs/formats/mapped-ram.md). Arithmetic only; offsets
// are absolute, in bytes from the beginning of the file, whatever `offset=` says.
//
//   entry (name, length, 28-byte header) | bitmap | padding to 1 MiB | pages | next entry or the stream's continuation
//
// Writing, place() follows from the position behind the entry. Reading, check() proves a received header: bitmap behind
// the entry, pages behind the bitmap, the pages' end within the file. Since the next entry begins at the end of the
// pages and is proved in the same way, no two regions of a file overlap, and every loop over blocks moves forward.
#pragma once

#include "base/result.hpp"
#include "protocol/stream/mapped_ram.hpp"
#include "transports/positional_file.hpp"

#include <cstdint>

namespace migrationd::ram {

struct MappedPlace {
  std::uint64_t bitmap_offset = 0;
  std::uint64_t bitmap_bytes = 0;
  std::uint64_t pages_offset = 0;
  std::uint64_t pages_end = 0;  // where the stream goes on

  bool operator==(const MappedPlace&) const = default;
};

// Of a block of `length` bytes (a multiple of page_size) whose entry ends at `entry_end`.
// Error: the file would be larger than a file can be.
Result<MappedPlace> place_mapped_block(std::uint64_t entry_end, std::uint64_t length);
stream::MappedRamHeader header_of(const MappedPlace& place) noexcept;

// Whether pages can go through `file` at their places: 4096 bytes in 4096 steps suit what direct I/O demands.
Result<void> check_page_alignment(const transports::PositionalFile& file);

// Proves a received header. `file_size` is the file's present size.
Result<MappedPlace> check_mapped_block(const stream::MappedRamHeader& header, std::uint64_t entry_end,
                                       std::uint64_t length, std::uint64_t file_size);

}  // namespace migrationd::ram
