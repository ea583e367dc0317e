// SPDX-License-Identifier: Apache-2.0
#include "ram/rdma_keys.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd::ram {

using rdma::chunk_bytes;

namespace {

std::string at_local_chunk(const RamBlock& block, std::uint64_t offset) {
  return fmt::format("block '{}' at {}: cannot get lkey", printable(block.name()), hex(offset));
}

}  // namespace

RdmaKeys::RdmaKeys(RamMap& map, std::shared_ptr<transports::RdmaDomain> domain)
    : map_(map), domain_(std::move(domain)) {
  for (std::size_t index = 0; index < map.size(); ++index) {
    Block block;
    block.chunks.resize(rdma::chunks_of(map.at(index).length()));
    blocks_.push_back(std::move(block));
  }
}

Result<std::uint32_t> RdmaKeys::local(std::size_t index, std::uint64_t number) {
  Block& block = blocks_[index];
  if (block.whole) return block.whole->local_key();
  Chunk& chunk = block.chunks[number];
  if (!chunk.local) {
    RamBlock& memory = map_.at(index);
    const std::uint64_t offset = number * chunk_bytes;
    const std::uint64_t length = std::min(chunk_bytes, memory.length() - offset);
    auto region = domain_->register_memory({memory.engine() + offset, length}, transports::RdmaAccess::read_local);
    if (!region) return std::move(region).error().with(at_local_chunk(memory, offset));
    chunk.local = std::move(*region);
  }
  return chunk.local->local_key();
}

Result<void> RdmaKeys::pin(std::size_t index) {
  RamBlock& memory = map_.at(index);
  auto region = domain_->register_memory({memory.engine(), memory.length()}, transports::RdmaAccess::read_local);
  if (!region) return std::move(region).error().with(at_local_chunk(memory, 0));
  blocks_[index].whole = std::move(*region);
  return {};
}

void RdmaKeys::forget_local() noexcept {
  for (Block& block : blocks_) {
    block.whole.reset();
    for (Chunk& chunk : block.chunks) chunk.local.reset();
  }
}

Result<void> RdmaKeys::take_blocks(std::span<const rdma::RemoteBlock> blocks, bool pinned) {
  if (blocks.size() != blocks_.size()) {
    return wire_error(
        fmt::format("RDMA: ram blocks mismatch (Number of blocks {} vs {}): the machines are probably not "
                    "identical on both the source and destination",
                    blocks_.size(), blocks.size()));
  }
  for (std::size_t index = 0; index < blocks.size(); ++index) {
    const RamBlock& ours = map_.at(index);
    const rdma::RemoteBlock& theirs = blocks[index];
    if (theirs.length != ours.length()) {
      return wire_error(fmt::format("RDMA: Block {}/{} has a different length {} vs {}", printable(ours.name()), index,
                                    ours.length(), theirs.length));
    }
    std::uint64_t end = 0;
    if (__builtin_add_overflow(theirs.address, theirs.length, &end) ||
        __builtin_add_overflow(theirs.offset, theirs.length, &end)) {
      return wire_error(fmt::format("RDMA: Block {}/{} at {} is said to lie beyond the end of the address space",
                                    printable(ours.name()), index, hex(theirs.address)));
    }
    blocks_[index].remote = theirs;
  }
  pinned_ = pinned;
  return {};
}

rdma::ChunkRequest RdmaKeys::request_for(std::size_t block, std::uint64_t chunk) const noexcept {
  return {where(block, chunk * chunk_bytes), static_cast<std::uint32_t>(block), 0};
}

Result<void> RdmaKeys::take_result(std::size_t block, std::uint64_t number, const rdma::RegisterResult& result) {
  Block& target = blocks_[block];
  if (result.block_address != target.remote.address) {
    return wire_error(fmt::format("RDMA: the key for block '{}' is said to be for memory at {}, but the block is at {}",
                                  printable(map_.at(block).name()), hex(result.block_address),
                                  hex(target.remote.address)));
  }
  target.chunks[number].remote_key = result.key;
  target.chunks[number].remote = Remote::known;
  return {};
}

transports::RdmaRemote RdmaKeys::remote(std::size_t block, std::uint64_t offset) const noexcept {
  const Block& target = blocks_[block];
  const std::uint32_t key = pinned_ ? target.remote.key : target.chunks[rdma::chunk_of(offset)].remote_key;
  return {target.remote.address + offset, key};
}

}  // namespace migrationd::ram
