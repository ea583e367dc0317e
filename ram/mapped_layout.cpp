// SPDX-License-Identifier: Apache-2.0
#include "ram/mapped_layout.hpp"

#include <fmt/format.h>

#include <limits>

namespace migrationd::ram {
namespace {

constexpr auto largest_offset = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());

// False when it does not fit a file offset.
bool add(std::uint64_t& to, std::uint64_t bytes) noexcept {
  if (to > largest_offset || bytes > largest_offset - to) return false;
  to += bytes;
  return true;
}

std::uint64_t bitmap_bytes_of(std::uint64_t length) noexcept {
  return stream::mapped_ram_bitmap_bytes(length / stream::page_bytes);
}

}  // namespace

Result<MappedPlace> place_mapped_block(std::uint64_t entry_end, std::uint64_t length) {
  MappedPlace place;
  place.bitmap_offset = entry_end;
  place.bitmap_bytes = bitmap_bytes_of(length);
  std::uint64_t end = entry_end;
  bool fits = add(end, place.bitmap_bytes) && add(end, stream::mapped_ram_alignment - 1);
  end -= end % stream::mapped_ram_alignment;
  place.pages_offset = end;
  fits = fits && add(end, length);
  place.pages_end = end;
  if (!fits) return plan_error(fmt::format("a block of {} bytes at {} does not fit a file", length, hex(entry_end)));
  return place;
}

stream::MappedRamHeader header_of(const MappedPlace& place) noexcept {
  stream::MappedRamHeader header;
  header.bitmap_offset = place.bitmap_offset;
  header.pages_offset = place.pages_offset;
  return header;
}

Result<void> check_page_alignment(const transports::PositionalFile& file) {
  if (stream::page_bytes % file.alignment() == 0) return {};
  return plan_error(fmt::format("direct-io: the file wants steps of {} bytes, but pages are placed in steps of {}",
                                file.alignment(), stream::page_bytes));
}

Result<MappedPlace> check_mapped_block(const stream::MappedRamHeader& header, std::uint64_t entry_end,
                                       std::uint64_t length, std::uint64_t file_size) {
  MappedPlace place;
  place.bitmap_offset = header.bitmap_offset;
  place.bitmap_bytes = bitmap_bytes_of(length);
  place.pages_offset = header.pages_offset;
  std::uint64_t bitmap_end = header.bitmap_offset;
  std::uint64_t pages_end = header.pages_offset;
  if (!add(bitmap_end, place.bitmap_bytes) || !add(pages_end, length)) {
    return wire_error(fmt::format("bitmap at {} or pages at {} reach past what a file can hold",
                                  hex(header.bitmap_offset), hex(header.pages_offset)));
  }
  if (header.bitmap_offset < entry_end) {
    return wire_error(fmt::format("bitmap at {} overlaps what is in front of it, up to {}", hex(header.bitmap_offset),
                                  hex(entry_end)));
  }
  if (header.pages_offset < bitmap_end) {
    return wire_error(fmt::format("pages at {} overlap the bitmap, {} to {}", hex(header.pages_offset),
                                  hex(header.bitmap_offset), hex(bitmap_end)));
  }
  if (pages_end > file_size) {
    return wire_error(
        fmt::format("pages reach to {}, but the file ends at {}: it is cut off", hex(pages_end), hex(file_size)));
  }
  place.pages_end = pages_end;
  return place;
}

}  // namespace migrationd::ram
