// SPDX-License-Identifier: Apache-2.0
//
// Chunks: the unit of registration, and the proofs of the destination.
//
// A block is divided into chunks of 1 MiB counted from its start; the last one is shorter. The source names memory by
// an address in a space that the destination makes up: each block begins somewhere in it, and the source only adds. So
// here is where numbers of the peer become a block and a range in it, or an error.
//
// Thread: pure functions of values; an AddressSpace is constant once made.
#pragma once

#include "base/result.hpp"
#include "protocol/rdma/control.hpp"

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace migrationd::rdma {

inline constexpr std::uint64_t chunk_bytes = std::uint64_t{1} << 20;

constexpr std::uint64_t chunk_of(std::uint64_t offset) noexcept { return offset / chunk_bytes; }
constexpr std::uint64_t chunks_of(std::uint64_t length) noexcept { return (length + chunk_bytes - 1) / chunk_bytes; }

// Bytes of one block.
struct BlockRange {
  std::size_t block = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  bool operator==(const BlockRange&) const = default;
};

// Whole chunks of one block.
struct ChunkRange {
  std::size_t block = 0;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  BlockRange bytes;
  bool operator==(const ChunkRange&) const = default;
};

// The destination's side: which addresses it gave out.
class AddressSpace {
 public:
  // `lengths`: of the blocks, in the order of the source's list.
  explicit AddressSpace(std::span<const std::uint64_t> lengths);

  std::size_t blocks() const noexcept { return blocks_.size(); }
  std::uint64_t offset_of(std::size_t block) const noexcept { return blocks_[block].offset; }

  // Errors: ErrorKind::wire, naming the block's number and what is beyond it.
  Result<ChunkRange> prove_register(const ChunkRequest& request) const;
  Result<ChunkRange> prove_unregister(const ChunkRequest& request) const;
  // `page`: offset and length must be its multiples.
  Result<BlockRange> prove_compress(const Compress& compress, std::uint64_t page) const;

 private:
  struct Block {
    std::uint64_t offset = 0;
    std::uint64_t length = 0;
  };
  Result<ChunkRange> prove_chunks(std::size_t block, std::uint64_t first, std::uint64_t further,
                                  std::string_view what) const;
  Result<std::uint64_t> prove_address(std::uint32_t block, std::uint64_t where, std::string_view what) const;

  std::vector<Block> blocks_;
};

}  // namespace migrationd::rdma
