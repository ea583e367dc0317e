// SPDX-License-Identifier: Apache-2.0
//
// Records of the RAM section: one page each, or a mark. This is the hot path of precopy: 16 million zero records
// of a 64 GiB hole pass through decode_ram_header(), so it allocates nothing, is inlined for the two common
// kinds (zero and page of the same block) and builds error texts only when asked.
//
// The memory of CONTINUE ("the block of the last named record") belongs to the channel and survives sections
// and commands. The caller keeps it, as a block index; the decoder is only told whether there is one:
//
//     const RamRecord record = decode_ram_header(available, current_block.has_value());
//     switch (record.kind) {
//       case RamKind::need_more: read until record.size bytes are there;
//       case RamKind::malformed: return ram_record_error(available, ...);
//       ...
//     }
//     if (record.named) current_block = find(record.name);
//
// Nothing here knows blocks: RamMap::prove() turns name and offset into memory, or refuses.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/layout.hpp"

#include <cstdint>
#include <string_view>

namespace migrationd::stream {

enum class RamKind : std::uint8_t {
  need_more,      // `size` bytes from the same start are wanted
  malformed,      // ask ram_record_error() why
  zero,           // the page is all zero; complete
  page,           // payload: 4096 bytes
  xbzrle,         // payload: n delta bytes for xbzrle_decode()
  compressed,     // payload: n zlib bytes for inflate_page()
  mem_size,       // offset = total; a RamSetupDecoder takes what follows
  eos,            // end of this section's body; the footer follows
  multifd_flush,  // synchronisation point, nothing follows
};

struct RamRecord {
  RamKind kind = RamKind::need_more;
  bool named = false;                // `name` is valid; otherwise the caller's current block is meant
  std::uint16_t payload_length = 0;  // bytes behind the header
  std::uint64_t offset = 0;          // bytes within the block, a multiple of 4096; mem_size: the total
  std::string_view name;             // view into the bytes shown, not empty
  // Bytes of the record's header (zero: of the whole record); from decode_ram_record() header and payload.
  // need_more: bytes wanted.
  std::size_t size = 0;
  ByteView payload;  // decode_ram_record() only; view into the bytes shown
};

namespace detail {
RamRecord decode_ram_header_slow(ByteView available, bool block_known) noexcept;
}

// The record's header only. For callers that read page bytes straight into guest memory.
inline RamRecord decode_ram_header(ByteView available, bool block_known) noexcept {
  if (available.size() >= zero_record_bytes && block_known) [[likely]] {
    const std::uint64_t word = load_be<std::uint64_t>(available.data());
    RamRecord record;
    record.offset = word & ~ram_flag::mask;
    const std::uint64_t flags = word & ram_flag::mask;
    if (flags == (ram_flag::zero | ram_flag::same_block) && available[ram_word_bytes] == std::byte{0}) [[likely]] {
      record.kind = RamKind::zero;
      record.size = zero_record_bytes;
      return record;
    }
    if (flags == (ram_flag::page | ram_flag::same_block)) {
      record.kind = RamKind::page;
      record.size = ram_word_bytes;
      record.payload_length = page_bytes;
      return record;
    }
  }
  return detail::decode_ram_header_slow(available, block_known);
}

// Header and payload together: need_more until all of the record is there.
inline RamRecord decode_ram_record(ByteView available, bool block_known) noexcept {
  RamRecord record = decode_ram_header(available, block_known);
  if (record.payload_length == 0) return record;
  const std::size_t total = record.size + record.payload_length;
  if (available.size() < total) {
    RamRecord more;
    more.size = total;
    return more;
  }
  record.payload = available.subspan(record.size, record.payload_length);
  record.size = total;
  return record;
}

// A run of zero records of the current block with ascending offsets, taken in one go: `pages` records beginning at
// `offset`, 9 bytes each. pages == 0 when the first record is another one. At most `max_pages`.
struct ZeroRun {
  std::uint64_t offset = 0;
  std::size_t pages = 0;
};
inline ZeroRun decode_zero_run(ByteView available, std::size_t max_pages) noexcept {
  constexpr std::uint64_t flags = ram_flag::zero | ram_flag::same_block;
  if (available.size() < zero_record_bytes) return {};
  const std::byte* at = available.data();
  const std::uint64_t first = load_be<std::uint64_t>(at);
  if ((first & ram_flag::mask) != flags) return {};
  std::size_t limit = available.size() / zero_record_bytes;
  if (limit > max_pages) limit = max_pages;
  std::uint64_t expected = first;
  std::size_t pages = 0;
  while (pages < limit && load_be<std::uint64_t>(at) == expected && at[ram_word_bytes] == std::byte{0}) {
    ++pages;
    at += zero_record_bytes;
    expected += page_bytes;
  }
  return {first & ~ram_flag::mask, pages};
}

// A HOOK: control messages of an RDMA transport come next, beside the stream. Everywhere else it is malformed.
inline bool is_rdma_hook(ByteView available) noexcept {
  return available.size() >= ram_word_bytes && load_be<std::uint64_t>(available.data()) == ram_flag::hook;
}

// Why decode_ram_header() said malformed about these bytes.
Error ram_record_error(ByteView available, bool block_known);

// --- encoding: into the caller's buffer, returning the bytes written ------------------------------------------
// `out` has room for ram_record_header_max bytes. `name` empty: CONTINUE. Offsets are multiples of 4096.
std::size_t encode_page_header(std::byte* out, std::uint64_t offset, std::string_view name) noexcept;
std::size_t encode_zero_record(std::byte* out, std::uint64_t offset, std::string_view name) noexcept;
// The header of a delta page of `length` bytes (1..4096), which follow.
std::size_t encode_xbzrle_header(std::byte* out, std::uint64_t offset, std::string_view name,
                                 std::size_t length) noexcept;
// The header of a zlib page of `length` bytes (1..4110), which follow.
std::size_t encode_compressed_header(std::byte* out, std::uint64_t offset, std::string_view name,
                                     std::size_t length) noexcept;
std::size_t encode_eos(std::byte* out) noexcept;
std::size_t encode_multifd_flush(std::byte* out) noexcept;
std::size_t encode_rdma_hook(std::byte* out) noexcept;

// `pages` zero records of the current block, ascending from first_offset; writes 9 * pages bytes.
inline std::size_t encode_zero_run(std::byte* out, std::uint64_t first_offset, std::size_t pages) noexcept {
  std::uint64_t word = first_offset | ram_flag::zero | ram_flag::same_block;
  for (std::size_t i = 0; i < pages; ++i, out += zero_record_bytes, word += page_bytes) {
    store_be(out, word);
    out[ram_word_bytes] = std::byte{0};
  }
  return pages * zero_record_bytes;
}

}  // namespace migrationd::stream
