// SPDX-License-Identifier: Apache-2.0
//
// PageOrigin: where the bytes of a machine's pages are: in guest memory (origin_memory), or still in the file that the
// machine was opened from (origin_mapped, origin_index).
//
// Several threads fetch pages at once, each through a PageReader of its own.
//
// A failed or short fetch is an error for that page, never zeros: the guest at the other end cannot tell a page that is
// zero from one that we could not read.
//
// Blocks are numbered as in the machine's RamMap; the caller has proved its numbers. Errors: ErrorKind::io, or
// ErrorKind::wire when a file is not what it was when it was opened; both name block and page.
#pragma once

#include "base/result.hpp"
#include "ram/page_batch.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

namespace migrationd::ram {

// The file that an origin reads, in the state in which it was opened.
struct OriginSource {
  std::string path;
  std::uint64_t size = 0;        // bytes
  std::int64_t modified_ns = 0;  // since the epoch
};

// Pages from where was asked up to `end` are of one kind.
struct OriginPiece {
  std::uint64_t end = 0;  // pages from the block's start
  bool zero = false;      // known to be zero without reading them
};

class PageReader {
 public:
  // Pages one read() gives at most: 1 MiB, what stays in a second-level cache.
  static constexpr std::uint64_t most_pages = 256;

  PageReader() = default;
  PageReader(const PageReader&) = delete;
  PageReader& operator=(const PageReader&) = delete;
  virtual ~PageReader() = default;

  // first < end. What lies at `first`, and how far: not beyond `end`.
  virtual Result<OriginPiece> look(std::size_t block, std::uint64_t first, std::uint64_t end) = 0;
  // Pages that look() calls data: pages[i] is that of run.first + i, page_size bytes, valid until the next read().
  // run.count <= most_pages == pages.size() at the least.
  virtual Result<void> read(std::size_t block, PageRun run, std::span<const std::byte*> pages) = 0;
  // Whether what was read, and looked at since, was the page's own content: memory of another process can be gone.
  virtual Result<void> check() const { return {}; }
};

class PageOrigin {
 public:
  PageOrigin() = default;
  PageOrigin(const PageOrigin&) = delete;
  PageOrigin& operator=(const PageOrigin&) = delete;
  virtual ~PageOrigin() = default;

  // Can pages still be had? Asked before a machine is handed over, which then depends on them.
  virtual Result<void> check() const { return {}; }
  // Any thread; the origin outlives the reader.
  virtual Result<std::unique_ptr<PageReader>> open_reader() = 0;
  // Nothing: no file, or one without a name.
  virtual std::optional<OriginSource> source() const { return std::nullopt; }
};

}  // namespace migrationd::ram
