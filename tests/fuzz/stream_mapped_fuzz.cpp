// SPDX-License-Identifier: Apache-2.0
// Mapped-ram: one byte of pages (and its upper half of the block's size), then a header, then a bitmap. What is taken
// is encoded again; a place that is accepted lies in order within the file.
#include "protocol/stream/mapped_ram.hpp"
#include "ram/mapped_layout.hpp"

#include <algorithm>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

namespace {

void require(bool right) {
  if (!right) std::abort();
}

void place(const MappedRamHeader& header, std::uint64_t entry_end, std::uint64_t length, std::uint64_t file_size) {
  const auto place = ram::check_mapped_block(header, entry_end, length, file_size);
  if (!place) return;
  require(place->bitmap_offset >= entry_end);
  require(place->bitmap_offset + place->bitmap_bytes <= place->pages_offset);
  require(place->pages_offset + length == place->pages_end && place->pages_end <= file_size);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ByteView all = std::as_bytes(std::span(data, size));
  if (all.empty()) return 0;
  const std::uint64_t pages = data[0] + std::uint64_t{1};
  const ByteView rest = all.subspan(1);
  const auto header = decode_mapped_ram_header(rest);
  if (header.needs_more()) require(header.needed() > rest.size());
  if (header.is_ready()) {
    ByteWriter out;
    encode_mapped_ram_header(out, header.value());
    require(std::equal(out.view().begin(), out.view().end(), rest.begin()));
    place(header.value(), mapped_ram_header_bytes, pages * page_bytes, std::uint64_t{1} << 40);
    place(header.value(), header.value().bitmap_offset, ~std::uint64_t{0} - 4095, ~std::uint64_t{0});
    static_cast<void>(ram::place_mapped_block(header.value().pages_offset, pages << (data[0] % 56)));
  }
  const std::size_t bitmap_bytes = mapped_ram_bitmap_bytes(pages);
  if (rest.size() >= bitmap_bytes) {
    const auto bitmap = decode_mapped_ram_bitmap(rest.first(bitmap_bytes), pages);
    if (bitmap) {
      require(bitmap->find_set(0) <= pages);
      require(std::ranges::equal(encode_mapped_ram_bitmap(*bitmap), rest.first(bitmap_bytes)));
    }
  }
  const auto body = decode_mapped_ram_body(rest);
  require(!body.needs_more() || body.needed() > rest.size());
  return 0;
}
