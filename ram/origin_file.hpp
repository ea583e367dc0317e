// SPDX-License-Identifier: Apache-2.0
//
// OriginFile: pages that are still in the file a machine was opened from: a mapped-ram file, where each page has its
// place, or a plain stream, gone through once to find where each page lies (stream_index.hpp).
//
// Files are read with pread, never mapped: a mapping of a file that is cut off is SIGBUS. Many readers, of several
// processes too, share the page cache. Neighbours in the file are fetched with one call.
//
// Fail closed: behind every read the FileGuard is asked; a short read, or a file that is not what it was, is an error.
#pragma once

#include "base/bitmap.hpp"
#include "base/unique_fd.hpp"
#include "ram/file_guard.hpp"
#include "ram/mapped_loader.hpp"
#include "ram/page_origin.hpp"
#include "transports/seekable_channel.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::ram {

// Where the pages of one block are. A page that is not there is zero.
struct BlockPlaces {
  // Pages at fixed places: those with a bit, at first + number * page_size.
  Bitmap present;
  std::uint64_t first = 0;
  // Pages of a stream: the offset of each one's bytes, 0 for none. Empty: fixed places.
  std::vector<std::uint64_t> offsets;

  std::uint64_t pages() const noexcept { return offsets.empty() ? present.size() : offsets.size(); }
};

// Where the pages of a block of a mapped-ram file are. Error: the file is cut off, or a bit lies behind the block's
// end.
Result<BlockPlaces> places_of(const MappedBlock& block, transports::SeekableChannel& file);

class OriginFile final : public PageOrigin {
 public:
  // All offsets have been proved against the file's size. `guard`: of the moment before any of them was read. `path`:
  // what the file is called; empty: it has no name.
  OriginFile(UniqueFd file, std::string path, FileGuard guard, std::vector<BlockPlaces> blocks) noexcept
      : file_(std::move(file)), path_(std::move(path)), guard_(guard), blocks_(std::move(blocks)) {}

  Result<void> check() const override { return guard_.check(file_.get()); }
  Result<std::unique_ptr<PageReader>> open_reader() override;
  std::optional<OriginSource> source() const override;

  const FileGuard& guard() const noexcept { return guard_; }
  // Pages that are not zero.
  std::uint64_t data_pages() const noexcept;

 private:
  class Reader;

  UniqueFd file_;
  std::string path_;
  FileGuard guard_;
  std::vector<BlockPlaces> blocks_;
};

}  // namespace migrationd::ram
