// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/mapped_ram.hpp"

#include <fmt/format.h>

#include <bit>
#include <cstring>

namespace migrationd::stream {

static_assert(std::endian::native == std::endian::little, "bitmaps are copied as they are");

Decoded<MappedRamHeader> decode_mapped_ram_header(ByteView available) {
  CodecCursor in(available);
  if (!in.has(mapped_ram_header_bytes)) return Decoded<MappedRamHeader>::need_more(in.needed());
  MappedRamHeader header;
  in.u32(header.version);
  in.u64(header.page_size);
  in.u64(header.bitmap_offset);
  in.u64(header.pages_offset);
  if (header.version > mapped_ram_version) {
    return wire_error(fmt::format("Migration mapped-ram capability version not supported (expected <= {}, got {})",
                                  mapped_ram_version, header.version));
  }
  if (header.page_size != page_bytes) {
    return wire_error(
        fmt::format("the file's pages are of {} bytes, this machine's of {}", header.page_size, page_bytes));
  }
  if (header.pages_offset % page_bytes != 0) {
    return wire_error(fmt::format("pages at {}: region has bad alignment", hex(header.pages_offset)));
  }
  return Decoded<MappedRamHeader>::ready(header, in.position());
}

void encode_mapped_ram_header(ByteWriter& out, const MappedRamHeader& header) {
  out.u32(header.version).u64(header.page_size).u64(header.bitmap_offset).u64(header.pages_offset);
}

Result<Bitmap> decode_mapped_ram_bitmap(ByteView bytes, std::uint64_t pages) {
  Bitmap bitmap(pages);
  std::memcpy(bitmap.words().data(), bytes.data(), bytes.size());
  const std::size_t used = pages % 64;
  if (used != 0 && (bitmap.words().back() >> used) != 0) {
    return wire_error(fmt::format("the bitmap has pages behind the block's end (it has {})", pages));
  }
  return bitmap;
}

Bytes encode_mapped_ram_bitmap(const Bitmap& bitmap) {
  const auto bytes = std::as_bytes(bitmap.words());
  return {bytes.begin(), bytes.end()};
}

Decoded<bool> decode_mapped_ram_body(ByteView available) {
  CodecCursor in(available);
  std::uint64_t word = 0;
  if (!in.u64(word)) return Decoded<bool>::need_more(in.needed());
  if (word != ram_flag::eos) {
    const std::uint64_t flags = (word & ram_flag::mask) & ~ram_flag::eos;
    return wire_error(fmt::format("Unexpected RAM flags: {} (in a mapped-ram file a section holds no records)", flags));
  }
  return Decoded<bool>::ready(true, in.position());
}

}  // namespace migrationd::stream
