// SPDX-License-Identifier: Apache-2.0
//
// The block list of the RAM section's START body (the MEM_SIZE record).
//
// The list has no count: lengths are subtracted from the total until nothing is left. Two optional members per
// block are not marked by the stream itself:
//   address    u64, for every block, exactly when the configuration lists x-ignore-shared
//   page_size  u64, only after POSTCOPY_ADVISE, and only for blocks whose backing page is not 4096 bytes
// page_size needs no knowledge of the local block: it begins with a zero byte, which a block name's length never
// is, and its low 12 bits are zero, which a record's word never has.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/layout.hpp"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>

namespace migrationd::stream {

struct RamSetupBlock {
  std::string name;                        // 1..255 bytes
  std::uint64_t used_length = 0;           // bytes; a multiple of 4096, not 0, at most limits::ram_block_bytes
  std::optional<std::uint64_t> page_size;  // bytes; a power of two above 4096, divides used_length
  std::optional<std::uint64_t> address;    // of the block's memory region in its container

  bool operator==(const RamSetupBlock&) const = default;
};

struct RamSetupOptions {
  bool addresses = false;         // x-ignore-shared is in the configuration
  bool postcopy_advised = false;  // POSTCOPY_ADVISE of length 16 came before
};

class RamSetupDecoder {
 public:
  // `total` is the offset of the MEM_SIZE record; proved against limits::ram_total_bytes by the first next().
  RamSetupDecoder(std::uint64_t total, RamSetupOptions options) noexcept : left_(total), options_(options) {}

  // No block is left; true at once when the total was 0.
  bool done() const noexcept { return left_ == 0; }
  // The next block. Call only while !done(). With postcopy_advised it looks up to eight bytes behind the block, which
  // are always there (EOS at the least).
  Decoded<RamSetupBlock> next(ByteView available);

 private:
  Result<void> check(const RamSetupBlock& block) const;

  std::uint64_t left_;
  RamSetupOptions options_;
  std::unordered_set<std::string> names_;
};

// The MEM_SIZE record alone: whoever calls it writes the list.
void encode_mem_size(ByteWriter& out, std::uint64_t total);
// The MEM_SIZE record with its list; the total is the sum of the lengths. Members that are set are written.
void encode_ram_setup(ByteWriter& out, std::span<const RamSetupBlock> blocks);

}  // namespace migrationd::stream
