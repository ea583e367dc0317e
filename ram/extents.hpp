// SPDX-License-Identifier: Apache-2.0
//
// Extents: where a block holds data and where holes, asked from the file, never by reading memory (a read of a
// hole through a mapping allocates it; docs/architecture.md section 13).
//
// Small pages: SEEK_DATA and SEEK_HOLE. lseek(2) moves the file offset of the open file description, and a memfd's
// description is shared with everybody who was given the descriptor (an attached guest reads and writes through
// it). So Extents opens the file anew by /proc/self/fd: a description of its own, whose offset nobody sees.
//
// Huge pages: hugetlbfs answers SEEK_DATA with "everything". There a probe mapping registered for minor faults is
// asked with UFFDIO_CONTINUE page by page: it maps pages the file has and refuses those it has not, allocating
// nothing. Where userfaultfd is not available, all of a huge-page block that holds anything counts as data; that is
// correct, only slower.
//
// Cost: finding the end of data visits its pages, 9 to 14 ms per GiB; holes are skipped at once.
// Thread: one at a time.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "ram/ram_map.hpp"
#include "ram/userfaultfd.hpp"

#include <cstdint>
#include <optional>

namespace migrationd::ram {

// [start, start + length) in bytes of a block, multiples of its backing page.
struct Extent {
  std::uint64_t start = 0;
  std::uint64_t length = 0;
  std::uint64_t end() const noexcept { return start + length; }
  bool operator==(const Extent&) const = default;
};

class Extents {
 public:
  // The block outlives it.
  static Result<Extents> of(const RamBlock& block);

  // First byte at or after `from` and below `end` that holds data; `end` if there is none.
  Result<std::uint64_t> next_data(std::uint64_t from, std::uint64_t end) const;
  // First byte at or after `from` that lies in a hole; `end` if data goes on until there.
  Result<std::uint64_t> next_hole(std::uint64_t from, std::uint64_t end) const;
  // The first piece of data in [from, end), cut off at `end`.
  Result<std::optional<Extent>> next(std::uint64_t from, std::uint64_t end) const;

 private:
  Extents(const RamBlock& block, UniqueFd file) noexcept : block_(&block), file_(std::move(file)) {}
  Result<void> make_probe();
  Result<bool> has_huge_page(std::uint64_t offset) const;
  bool surely_full(std::uint64_t from, std::uint64_t end) const noexcept;
  Result<std::uint64_t> seek(std::uint64_t from, std::uint64_t end, bool data) const;
  Result<std::uint64_t> probe(std::uint64_t from, std::uint64_t end, bool data) const;

  const RamBlock* block_;
  UniqueFd file_;                        // small pages: a description of our own
  std::optional<Userfaultfd> probe_fd_;  // huge pages: for the probe mapping
  Mapping probe_;
};

}  // namespace migrationd::ram
