// SPDX-License-Identifier: Apache-2.0
//
// What a mapped-ram file adds to the stream (docs/formats/mapped-ram.md): behind each block's name and length stands a
// header of 28 bytes, and at the place it names a bitmap of the pages that are in the file.
//
//   header = u32 version  u64 page_size  u64 bitmap_offset  u64 pages_offset       big-endian; offsets from byte 0
//   bitmap = u64 word[]   bit i of the whole = page i; little-endian, rounded up to whole words
//
// A RAM section of such a file holds no page records: PART and END bodies are the EOS record alone.
#pragma once

#include "base/bitmap.hpp"
#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/layout.hpp"

#include <cstddef>
#include <cstdint>

namespace migrationd::stream {

inline constexpr std::size_t mapped_ram_header_bytes = 4 + 8 + 8 + 8;
inline constexpr std::uint32_t mapped_ram_version = 1;
// Where page areas begin: a multiple of this, counted from byte 0 of the file. Ours to keep when writing; a reader asks
// for page alignment only, because other writers may choose another step.
inline constexpr std::uint64_t mapped_ram_alignment = std::uint64_t{1} << 20;

struct MappedRamHeader {
  std::uint32_t version = mapped_ram_version;
  std::uint64_t page_size = page_bytes;
  std::uint64_t bitmap_offset = 0;
  std::uint64_t pages_offset = 0;

  bool operator==(const MappedRamHeader&) const = default;
};

// Decodes and checks what needs no knowledge of the block: version and page size, pages_offset a multiple of it.
Decoded<MappedRamHeader> decode_mapped_ram_header(ByteView available);
void encode_mapped_ram_header(ByteWriter& out, const MappedRamHeader& header);

// Bytes of the bitmap of a block of so many pages.
constexpr std::uint64_t mapped_ram_bitmap_bytes(std::uint64_t pages) noexcept { return (pages + 63) / 64 * 8; }

// `bytes` is as long as mapped_ram_bitmap_bytes(pages) says. Error: a bit is set for a page behind the block's end.
// (QEMU ignores those; no writer sets them, so they mean damage.)
Result<Bitmap> decode_mapped_ram_bitmap(ByteView bytes, std::uint64_t pages);
Bytes encode_mapped_ram_bitmap(const Bitmap& bitmap);

// Takes the body of a RAM section behind START's list: EOS and nothing else.
Decoded<bool> decode_mapped_ram_body(ByteView available);

}  // namespace migrationd::stream
