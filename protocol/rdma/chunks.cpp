// SPDX-License-Identifier: Apache-2.0
#include "protocol/rdma/chunks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace migrationd::rdma {
namespace {

// Where blocks begin: never at 0, so that an address of nothing is none of ours, and far enough apart that small errors
// in a peer's arithmetic do not reach the next block.
constexpr std::uint64_t spacing = std::uint64_t{1} << 32;

}  // namespace

AddressSpace::AddressSpace(std::span<const std::uint64_t> lengths) {
  std::uint64_t at = spacing;
  for (const std::uint64_t length : lengths) {
    blocks_.push_back({at, length});
    at += (length / spacing + 1) * spacing;
  }
}

Result<std::uint64_t> AddressSpace::prove_address(std::uint32_t block, std::uint64_t where,
                                                  std::string_view what) const {
  if (block >= blocks_.size())
    return wire_error(fmt::format("RDMA: '{}' bad block index {} (vs {})", what, block, blocks_.size()));
  const Block& target = blocks_[block];
  if (where < target.offset || where - target.offset >= target.length) {
    return wire_error(fmt::format("RDMA: bad {} address for block {}: {} is not within {} bytes from {}", what, block,
                                  hex(where), hex(target.length), hex(target.offset)));
  }
  return where - target.offset;
}

Result<ChunkRange> AddressSpace::prove_chunks(std::size_t block, std::uint64_t first, std::uint64_t further,
                                              std::string_view what) const {
  const std::uint64_t length = blocks_[block].length;
  const std::uint64_t have = chunks_of(length);
  // In this order nothing overflows.
  if (first >= have || further >= have - first) {
    return wire_error(
        fmt::format("RDMA: '{}' of chunk {} and {} more in block {}, which has {}", what, first, further, block, have));
  }
  ChunkRange range;
  range.block = block;
  range.first = first;
  range.count = further + 1;
  range.bytes.block = block;
  range.bytes.offset = first * chunk_bytes;
  range.bytes.length = std::min(range.count * chunk_bytes, length - range.bytes.offset);
  return range;
}

Result<ChunkRange> AddressSpace::prove_register(const ChunkRequest& request) const {
  MD_TRY(const std::uint64_t offset, prove_address(request.block, request.where, "register"));
  return prove_chunks(request.block, chunk_of(offset), request.further, "register");
}

Result<ChunkRange> AddressSpace::prove_unregister(const ChunkRequest& request) const {
  if (request.block >= blocks_.size())
    return wire_error(fmt::format("RDMA: 'unregister' bad block index {} (vs {})", request.block, blocks_.size()));
  return prove_chunks(request.block, request.where, request.further, "unregister");
}

Result<BlockRange> AddressSpace::prove_compress(const Compress& compress, std::uint64_t page) const {
  MD_TRY(const std::uint64_t offset, prove_address(compress.block, compress.where, "compress"));
  const std::uint64_t length = blocks_[compress.block].length;
  if (compress.length == 0 || compress.length > length - offset || offset % page != 0 || compress.length % page != 0) {
    return wire_error(fmt::format("RDMA: 'compress' of {} bytes at {} in block {} of {} bytes", compress.length,
                                  hex(offset), compress.block, hex(length)));
  }
  return BlockRange{compress.block, offset, compress.length};
}

}  // namespace migrationd::rdma
