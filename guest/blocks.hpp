// SPDX-License-Identifier: Apache-2.0
//
// Blocks: the memory a guest shares. Each has a sealed memfd and a mapping; with a shared bitmap, that too.
//
// Thread: blocks are added by one thread before the guest attaches; afterwards the list is constant.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "guest/protocol.hpp"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::guest {

// A mapping that is given back at the end; empty if the memory is the program's own.
class Mapping {
 public:
  Mapping() noexcept = default;
  Mapping(std::byte* address, std::uint64_t length) noexcept : address_(address), length_(length) {}
  Mapping(Mapping&& other) noexcept
      : address_(std::exchange(other.address_, nullptr)), length_(std::exchange(other.length_, 0)) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(address_, other.address_);
    std::swap(length_, other.length_);
    return *this;
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping();

  std::byte* address() const noexcept { return address_; }

 private:
  std::byte* address_ = nullptr;
  std::uint64_t length_ = 0;
};

struct Block {
  std::string name;
  std::byte* address = nullptr;
  std::uint64_t length = 0;
  std::uint32_t page_size = 0;
  Tracking tracking = Tracking::none;
  UniqueFd memory;
  UniqueFd bitmap;  // with Tracking::bitmap and both
  Mapping own;      // of the library's blocks
  Mapping bits;

  AddBlock message() const;
};

class Blocks {
 public:
  // Errors: a name, length or page size that will not do; a name or a range taken; no memory.
  Result<std::byte*> create(std::string_view name, std::uint64_t length, std::uint32_t page_size, Tracking tracking);
  // Memory of the program's, proved: seals, length, and that it is mapped there. `fd` stays the caller's.
  Result<void> adopt(std::string_view name, std::byte* address, std::uint64_t length, int fd, Tracking tracking);

  std::span<const Block> all() const noexcept { return blocks_; }
  // Error: there is none of that name.
  Result<std::size_t> find(std::string_view name) const;
  // Proves that the range lies in the block and is whole pages.
  Result<void> prove_range(std::size_t block, std::uint64_t offset, std::uint64_t length) const;
  // Punches a proved range out.
  Result<void> punch(std::size_t block, std::uint64_t offset, std::uint64_t length) const;
  // No transparent huge pages in these mappings any more.
  Result<void> forbid_huge_pages() const;

 private:
  Result<void> prove_new(std::string_view name, std::uint64_t length, std::uint32_t page_size) const;
  Result<void> add_bitmap(Block& block) const;

  std::vector<Block> blocks_;
};

}  // namespace migrationd::guest
