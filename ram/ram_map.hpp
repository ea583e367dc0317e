// SPDX-License-Identifier: Apache-2.0
//
// Guest memory: RamBlock, RamMap, GuestSpan.
//
// Every block is a memfd. The *engine view* is migrationd's own mapping: it reads and writes pages and never
// traps. The *guest view*, where there is one, is the mapping the guest runs in; dirty tracking concerns that
// one only (docs/architecture.md section 12, decision 2).
//
// A number from the wire becomes an address in exactly one place: RamMap::prove() returns a GuestSpan or an
// error. Nothing else in the tree takes wire offsets.
//
// Holes: a page nobody ever wrote is a hole of the memfd. Reading it through a mapping would allocate it, so
// code that only wants to know asks `extents` (SEEK_DATA), never the memory.
//
// Thread: a RamMap is immutable after set-up, except for discard of its pages; views may be used by any thread
// that owns the pages (section 4 of docs/architecture.md). Sizes and offsets are bytes unless named *_pages.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "ram/bus_guard.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::ram {

// The target page: the unit of the stream for x86 guests.
inline constexpr std::size_t page_size = 4096;
inline constexpr std::size_t huge_page_size = std::size_t{2} << 20;
inline constexpr std::uint64_t pages_per_huge = huge_page_size / page_size;

// An owned mapping; unmaps on destruction.
class Mapping {
 public:
  Mapping() noexcept = default;
  Mapping(std::byte* address, std::size_t length) noexcept : address_(address), length_(length) {}
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();

  // MAP_SHARED, read and write, MAP_NORESERVE. Nothing is populated.
  static Result<Mapping> of_fd(int fd, std::size_t length);

  std::byte* data() const noexcept { return address_; }
  std::size_t size() const noexcept { return length_; }
  explicit operator bool() const noexcept { return address_ != nullptr; }

 private:
  std::byte* address_ = nullptr;
  std::size_t length_ = 0;
};

class RamBlock {
 public:
  // A fresh, empty memfd of `length` bytes (a multiple of backing_page), sealed against shrinking, and its engine view.
  // Not against growing: a QEMU that takes it over by cpr-transfer makes it as large as the block may become.
  // backing_page is page_size, or huge_page_size for a hugetlb memfd; missing huge pages are an error, never replaced
  // by small ones.
  static Result<std::unique_ptr<RamBlock>> create(std::string name, std::uint64_t length, std::size_t backing_page);
  // A memfd of another process: sealed against shrinking, of that length and with pages of that size. Its memory may
  // turn out not to be there (ram/bus_guard.hpp); check() says so.
  static Result<std::unique_ptr<RamBlock>> adopt(std::string name, UniqueFd fd, std::uint64_t length,
                                                 std::size_t backing_page);

  // Memory that its process hands over for good (cpr-transfer): a file of tmpfs or hugetlbfs, as memfds are, open for
  // reading and writing, with at least `length` bytes; of a block that may grow it has more. Sealed or not: QEMU's are
  // not, so the file may shrink under us, and check() says so.
  static Result<std::unique_ptr<RamBlock>> take_over(std::string name, UniqueFd fd, std::uint64_t length);

  // Memory in a file that has a name and outlives this process: on tmpfs, persistent memory or a disk, of at least
  // `length` bytes. Others may cut it off, and check() says so.
  static Result<std::unique_ptr<RamBlock>> open_file(std::string name, const std::string& path, std::uint64_t length);

  const std::string& name() const noexcept { return name_; }
  std::uint64_t length() const noexcept { return length_; }  // "used length" on the wire
  std::uint64_t pages() const noexcept { return length_ / page_size; }
  std::size_t backing_page() const noexcept { return backing_page_; }
  int fd() const noexcept { return fd_.get(); }
  std::byte* engine() const noexcept { return engine_.data(); }
  // Whoever comes next finds this memory under the file's name (open_file): what x-ignore-shared leaves out.
  bool is_named_file() const noexcept { return named_file_; }
  // Where the guest sees it, if the stream that brought it said so (x-ignore-shared). Set before others use the block.
  std::optional<std::uint64_t> guest_address() const noexcept { return guest_address_; }
  void set_guest_address(std::optional<std::uint64_t> address) noexcept { guest_address_ = address; }

  // Whether all that was read and written through the engine view really was: an error names block and offset.
  Result<void> check() const;
  // Bytes the block really holds, by the file's own count of blocks.
  Result<std::uint64_t> allocated_bytes() const;
  // Gets all of the block from the kernel now, and into the engine view's page tables.
  Result<void> populate();
  // Huge pages: has the kernel promise all of them again, after a punch gave some away. Nothing for small pages.
  Result<void> reserve();
  // Gives [offset, offset + length) back to the kernel: a hole in every view. Both multiples of backing_page().
  Result<void> punch(std::uint64_t offset, std::uint64_t length);

 private:
  RamBlock(std::string name, std::uint64_t length, std::size_t backing_page, UniqueFd fd, Mapping engine) noexcept;
  // With an engine view that is guarded.
  static Result<std::unique_ptr<RamBlock>> guarded(std::string name, UniqueFd fd, std::uint64_t length,
                                                   std::size_t backing_page);

  std::string name_;
  std::uint64_t length_;
  std::size_t backing_page_;
  UniqueFd fd_;
  Mapping engine_;
  std::unique_ptr<BusGuard> guard_;  // of a foreign block
  bool named_file_ = false;
  std::optional<std::uint64_t> guest_address_;
};

// Proves what a process gave for shared memory: a memfd that cannot shrink, of `length` bytes and pages of `page`.
Result<void> check_foreign_memory(int fd, std::uint64_t length, std::size_t page);

// A proved range of guest memory: block index in its map, offset and length within the block's bounds.
// Only RamMap makes one.
class GuestSpan {
 public:
  std::size_t block() const noexcept { return block_; }
  std::uint64_t offset() const noexcept { return offset_; }
  std::size_t length() const noexcept { return length_; }

 private:
  friend class RamMap;
  GuestSpan(std::size_t block, std::uint64_t offset, std::size_t length) noexcept
      : block_(block), offset_(offset), length_(length) {}
  std::size_t block_;
  std::uint64_t offset_;
  std::size_t length_;
};

class RamMap {
 public:
  // Refuses a second block of one name (ErrorKind::machine).
  Result<void> add(std::unique_ptr<RamBlock> block);

  std::size_t size() const noexcept { return blocks_.size(); }
  RamBlock& at(std::size_t index) const noexcept { return *blocks_[index]; }
  std::uint64_t total_bytes() const noexcept;
  // RamBlock::check() of all. Before a machine is handed over, or taken over.
  Result<void> check() const;
  // Index of the block of that name, or an error naming it.
  Result<std::size_t> find(std::string_view name) const;
  // The only way from wire numbers to memory.
  Result<GuestSpan> prove(std::size_t block, std::uint64_t offset, std::uint64_t length) const;
  // The bytes of a proved span, in the engine view.
  std::span<std::byte> memory(const GuestSpan& span) const noexcept {
    return {blocks_[span.block()]->engine() + span.offset(), span.length()};
  }

 private:
  std::vector<std::unique_ptr<RamBlock>> blocks_;
};

}  // namespace migrationd::ram
