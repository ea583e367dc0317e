// SPDX-License-Identifier: Apache-2.0
//
// WorkingSet: the pages that a resumed machine asked for, in that order, as they are kept beside the file it came from
// (docs/formats/working-set.md). Pure: no files.
//
// The next resume of that file sends them first, so that the guest need not ask. Everything in a record is a hint: a
// wrong one costs a wrong order and nothing else, for which pages there are and what is in them is never taken from it.
// Still its numbers are proved here: what decode() returns lies within the blocks that it was given.
//
// A record belongs to one state of one file: size and time of modification are compared.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "postcopy/block_shape.hpp"
#include "postcopy/unsent_pages.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace migrationd::postcopy {

// Runs of a record: what a machine touches in hours, page by page. 4 MiB of file.
inline constexpr std::size_t most_working_set_runs = std::size_t{1} << 18;
// Blocks that a record may name, as many as a stream (limits::ram_blocks), and what they take at most.
inline constexpr std::size_t most_working_set_bytes =
    32 + std::size_t{4096} * (1 + 255 + 8) + most_working_set_runs * 16;

// Which file, in which state.
struct FileState {
  std::uint64_t size = 0;        // bytes
  std::int64_t modified_ns = 0;  // since the epoch
  bool operator==(const FileState&) const = default;
};

// At most most_working_set_runs of `order`.
Bytes encode_working_set(const FileState& file, std::span<const BlockShape> blocks, std::span<const PageRange> order);
// Errors: ErrorKind::plan when it is of another file or another machine; ErrorKind::wire when it is none.
Result<std::vector<PageRange>> decode_working_set(ByteView bytes, const FileState& file,
                                                  std::span<const BlockShape> blocks);

// `first`, then what of `then` is not in it; both lie within the blocks. Neighbours become one run.
std::vector<PageRange> join_working_sets(std::span<const BlockShape> blocks, std::span<const PageRange> first,
                                         std::span<const PageRange> then);

}  // namespace migrationd::postcopy
