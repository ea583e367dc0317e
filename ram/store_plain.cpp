// SPDX-License-Identifier: Apache-2.0
#include "ram/store_plain.hpp"

#include "ram/extents.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace migrationd::ram {
namespace {

// A block of an earlier attempt, or of the guest that ran here, is given back: then "never stored" means "zero".
// hugetlb pages once given back can be taken by other programs of the host, so those are cleared instead.
Result<void> empty_block(RamBlock& block) {
  MD_TRY(const std::uint64_t allocated, block.allocated_bytes());
  if (allocated == 0) return {};
  if (block.backing_page() == page_size) return block.punch(0, block.length());
  MD_TRY(const Extents extents, Extents::of(block));
  for (std::uint64_t at = 0; at < block.length();) {
    MD_TRY(const auto piece, extents.next(at, block.length()));
    if (!piece) break;
    std::memset(block.engine() + piece->start, 0, piece->length);
    at = piece->end();
  }
  return {};
}

}  // namespace

StorePlain::StorePlain(RamMap& map) : map_(map) {
  for (std::size_t index = 0; index < map.size(); ++index)
    blocks_.push_back(
        Block{Bitmap(map.at(index).pages()), Bitmap(map.at(index).pages()), Bitmap(map.at(index).pages())});
}

Result<std::unique_ptr<StorePlain>> StorePlain::make(RamMap& map) {
  for (std::size_t index = 0; index < map.size(); ++index) MD_CHECK(empty_block(map.at(index)));
  return std::unique_ptr<StorePlain>(new StorePlain(map));
}

void StorePlain::copy_to_view(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages) noexcept {
  std::byte* to = block.engine() + offset;
  for (const iovec& page : pages) {
    std::memcpy(to, page.iov_base, page_size);
    to += page_size;
  }
}

Result<void> StorePlain::write_to_file(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages) {
  rest_.assign(pages.begin(), pages.end());
  std::span<iovec> rest(rest_);
  while (!rest.empty()) {
    const ssize_t written =
        ::pwritev(block.fd(), rest.data(), static_cast<int>(rest.size()), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0)
      return Error::from_errno(fmt::format("block '{}': store pages at {}", printable(block.name()), hex(offset)),
                               written == 0 ? ENOSPC : errno);
    offset += static_cast<std::uint64_t>(written);
    auto left = static_cast<std::size_t>(written);
    while (!rest.empty() && left >= rest.front().iov_len) {
      left -= rest.front().iov_len;
      rest = rest.subspan(1);
    }
    if (left != 0) {
      rest.front().iov_base = static_cast<std::byte*>(rest.front().iov_base) + left;
      rest.front().iov_len -= left;
    }
  }
  return {};
}

// What is stored for the second time is hot.
void StorePlain::note_stored(Block& block, std::size_t first, std::size_t end) noexcept {
  for (std::size_t page = block.stored.find_set(first); page < end; page = block.stored.find_set(page)) {
    const std::size_t stop = std::min(end, block.stored.find_clear(page));
    block.hot.set_range(page, stop - page);
    page = stop;
  }
  block.stored.set_range(first, end - first);
}

Result<void> StorePlain::place(const GuestSpan& span, std::span<const iovec> pages) {
  const RamBlock& target = map_.at(span.block());
  Block& block = blocks_[span.block()];
  const std::size_t first = span.offset() / page_size;
  const std::size_t end = first + pages.size();
  const bool huge = target.backing_page() != page_size;
  for (std::size_t page = first; page < end;) {
    const bool by_view = huge || block.hot.test(page);
    const std::size_t stop =
        huge ? end : std::min(end, by_view ? block.hot.find_clear(page) : block.hot.find_set(page));
    const auto part = pages.subspan(page - first, stop - page);
    if (by_view) {
      copy_to_view(target, page * page_size, part);
    } else {
      MD_CHECK(write_to_file(target, page * page_size, part));
      note_stored(block, page, stop);
    }
    page = stop;
  }
  if (huge) block.stored.set_range(first, pages.size());
  block.received.set_range(first, pages.size());
  return {};
}

Result<void> StorePlain::place_zero(const GuestSpan& span) {
  Block& block = blocks_[span.block()];
  const std::size_t first = span.offset() / page_size;
  const std::size_t end = first + span.length() / page_size;
  block.received.set_range(first, end - first);
  for (std::size_t page = block.stored.find_set(first); page < end; page = block.stored.find_set(page)) {
    const std::size_t stop = std::min(end, block.stored.find_clear(page));
    std::memset(map_.at(span.block()).engine() + page * page_size, 0, (stop - page) * page_size);
    page = stop;
  }
  return {};
}

Result<std::span<std::byte>> StorePlain::page_to_change(const GuestSpan& page) {
  Block& block = blocks_[page.block()];
  block.stored.set(page.offset() / page_size);
  block.received.set(page.offset() / page_size);
  return map_.memory(page);
}

std::uint64_t StorePlain::pages_never_received(std::size_t block) const noexcept {
  return blocks_[block].received.size() - blocks_[block].received.count();
}

}  // namespace migrationd::ram
