// SPDX-License-Identifier: Apache-2.0
#include "postcopy/host_page_assembler.hpp"

#include "protocol/stream/layout.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <cstring>

namespace migrationd::postcopy {

using stream::page_bytes;

Error HostPageAssembler::out_of_turn(std::size_t block, std::uint64_t page) const {
  return wire_error(fmt::format("block '{}' at {}: a page of another host page before that at {} of '{}' was whole",
                                printable(blocks_[block].name), hex(page * page_bytes), hex(first_ * page_bytes),
                                printable(blocks_[*block_].name)));
}

Result<void> HostPageAssembler::begin(std::size_t block, std::uint64_t first) {
  const std::uint64_t pages = blocks_[block].host_pages;
  if (buffer_pages_ < pages) {
    buffer_.reset(static_cast<std::byte*>(std::aligned_alloc(page_bytes, pages * page_bytes)));
    if (!buffer_) return machine_error(fmt::format("no memory for a page of {} bytes", pages * page_bytes));
    buffer_pages_ = pages;
  }
  block_ = block;
  first_ = first;
  seen_ = Bitmap(pages);
  count_ = 0;
  zero_ = true;
  return {};
}

Result<std::optional<HostPageAssembler::Whole>> HostPageAssembler::take(std::size_t block, std::uint64_t page,
                                                                        const std::byte* bytes) {
  const std::uint64_t pages = blocks_[block].host_pages;
  const std::uint64_t first = page - page % pages;
  if (block_ && (*block_ != block || first_ != first)) return out_of_turn(block, page);
  if (pages == 1) return std::optional<Whole>(Whole{block, page, bytes});
  if (!block_) MD_CHECK(begin(block, first));
  const std::uint64_t number = page - first;
  if (seen_.test(number)) {
    return wire_error(fmt::format("block '{}' at {}: twice in one host page", printable(blocks_[block].name),
                                  hex(page * page_bytes)));
  }
  // Zeros are written only once something else is there.
  if (bytes != nullptr && zero_) {
    std::memset(buffer_.get(), 0, number * page_bytes);
    for (std::uint64_t i = number + 1; i < pages; ++i) {
      if (seen_.test(i)) std::memset(buffer_.get() + i * page_bytes, 0, page_bytes);
    }
    zero_ = false;
  }
  if (bytes != nullptr) {
    std::memcpy(buffer_.get() + number * page_bytes, bytes, page_bytes);
  } else if (!zero_) {
    std::memset(buffer_.get() + number * page_bytes, 0, page_bytes);
  }
  seen_.set(number);
  if (++count_ < pages) return std::optional<Whole>();
  block_.reset();
  return std::optional<Whole>(Whole{block, first, zero_ ? nullptr : buffer_.get()});
}

}  // namespace migrationd::postcopy
