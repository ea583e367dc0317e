// SPDX-License-Identifier: Apache-2.0
//
// RdmaKeys: what the source has registered of its memory, and what the destination has told of its own.
//
// Memory is registered by chunks of 1 MiB when the first byte of a chunk is to be written, for reading by the adapter
// only, and kept for the migration: registering pins pages, which costs more than writing them. A registration pins the
// pages that are there at that moment. A guest that gives memory back and gets new pages for it would be copied from
// the old ones; so where the guest may do that, forget_local() drops everything at the end of each pass, when nothing
// is under way, and a page that changes hands within a pass is dirty again and goes in the next one.
//
// Registering fills the holes of a chunk. Chunks without a page to write are never registered.
//
// Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "protocol/rdma/chunks.hpp"
#include "ram/ram_map.hpp"
#include "transports/rdma_link.hpp"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace migrationd::ram {

class RdmaKeys {
 public:
  // Both outlive it.
  RdmaKeys(RamMap& map, std::shared_ptr<transports::RdmaDomain> domain);

  // --- ours --------------------------------------------------------------------------------------------------------
  // The key for reading chunk `chunk` of `block`; registers it first where that was not done.
  Result<std::uint32_t> local(std::size_t block, std::uint64_t chunk);
  // All of a block at once.
  Result<void> pin(std::size_t block);
  void forget_local() noexcept;

  // --- the destination's -------------------------------------------------------------------------------------------
  // Its answer to the request for blocks. Errors: QEMU's texts for blocks that differ from ours; a block that would
  // wrap around the end of its address space.
  Result<void> take_blocks(std::span<const rdma::RemoteBlock> blocks, bool pinned);
  bool has_remote(std::size_t block, std::uint64_t chunk) const noexcept {
    return pinned_ || blocks_[block].chunks[chunk].remote == Remote::known;
  }
  // Not known, and noted as one that is to be asked for.
  bool is_wanted(std::size_t block, std::uint64_t chunk) const noexcept {
    return blocks_[block].chunks[chunk].remote == Remote::wanted;
  }
  void note_wanted(std::size_t block, std::uint64_t chunk) noexcept {
    blocks_[block].chunks[chunk].remote = Remote::wanted;
  }
  // The request that asks for a chunk, and its answer. Error: the answer is about another block.
  rdma::ChunkRequest request_for(std::size_t block, std::uint64_t chunk) const noexcept;
  Result<void> take_result(std::size_t block, std::uint64_t chunk, const rdma::RegisterResult& result);
  // How a request names a byte of a block.
  std::uint64_t where(std::size_t block, std::uint64_t offset) const noexcept {
    return blocks_[block].remote.offset + offset;
  }
  // Where a byte of a block is written to; only when has_remote().
  transports::RdmaRemote remote(std::size_t block, std::uint64_t offset) const noexcept;

 private:
  enum class Remote : std::uint8_t { unknown, wanted, known };
  struct Chunk {
    std::unique_ptr<transports::RdmaRegion> local;
    std::uint32_t remote_key = 0;
    Remote remote = Remote::unknown;
  };
  struct Block {
    rdma::RemoteBlock remote;
    std::unique_ptr<transports::RdmaRegion> whole;
    std::vector<Chunk> chunks;
  };

  RamMap& map_;
  std::shared_ptr<transports::RdmaDomain> domain_;
  bool pinned_ = false;  // by the destination
  std::vector<Block> blocks_;
};

}  // namespace migrationd::ram
