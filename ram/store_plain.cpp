// SPDX-License-Identifier: Apache-2.0
#include "ram/store_plain.hpp"

#include "ram/extents.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

namespace migrationd::ram {
namespace {

constexpr std::size_t chunk_pages = huge_page_size / page_size;  // what one page of page tables covers

// What is chosen among the words of such a file: "always within_size [advise] never".
std::string chosen_in(const char* path) {
  std::ifstream file(path);
  std::string words;
  std::getline(file, words);
  const auto open = words.find('[');
  const auto close = words.find(']', open);
  return close == std::string::npos ? std::string() : words.substr(open + 1, close - open - 1);
}

// Asked once: whoever changes it starts the daemon anew.
bool memfds_have_huge_pages() {
  static const bool have = [] {
    // Each size has its own word since Linux 6.10.
    std::string word = chosen_in("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled");
    if (word.empty() || word == "inherit") word = chosen_in("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    return word == "advise" || word == "within_size" || word == "always" || word == "force";
  }();
  return have;
}

// What one read fault maps besides, where it is in memory (the kernel's fault_around_bytes by default). Less is no
// harm: the others fault one by one then.
constexpr std::size_t fault_around_pages = 16;

// Fills the page tables of [page, end). MADV_POPULATE_READ would look up every page singly, mapped already or not, with
// the lock held: a tenth of a destination's time. Another thread may be filling one of these pages, through the view or
// the file; what is read does not matter, so ThreadSanitizer is told to look away.
__attribute__((no_sanitize("thread"))) void touch(const std::byte* memory, std::size_t page, std::size_t end) noexcept {
  while (page < end) {
    [[maybe_unused]] const std::byte seen = static_cast<const volatile std::byte*>(memory)[page * page_size];
    page = (page / fault_around_pages + 1) * fault_around_pages;
  }
}

bool is_huge(const RamBlock& block) noexcept { return block.backing_page() != page_size; }

}  // namespace

StorePlain::StorePlain(RamMap& map) : map_(map) {
  for (std::size_t index = 0; index < map.size(); ++index) {
    const Bitmap none(map.at(index).pages());
    blocks_.push_back(Block{none, none, none});
  }
}

Result<std::unique_ptr<StorePlain>> StorePlain::make(RamMap& map, const std::vector<bool>& kept) {
  std::unique_ptr<StorePlain> store(new StorePlain(map));
  for (std::size_t index = 0; index < map.size(); ++index) {
    if (kept.empty() || !kept[index]) MD_CHECK(store->note_stale(index));
  }
  return store;
}

Result<void> StorePlain::note_stale(std::size_t index) {
  const RamBlock& target = map_.at(index);
  Bitmap& stale = blocks_[index].stale;
  MD_TRY(const std::uint64_t allocated, target.allocated_bytes());
  if (allocated == 0) return {};
  if (allocated == target.length()) {
    stale.set_all();
    return {};
  }
  MD_TRY(const Extents extents, Extents::of(target));
  for (std::uint64_t at = 0; at < target.length();) {
    MD_TRY(const auto piece, extents.next(at, target.length()));
    if (!piece) break;
    stale.set_range(piece->start / page_size, piece->length / page_size);
    at = piece->end();
  }
  return {};
}

void StorePlain::copy_to_view(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages) noexcept {
  std::byte* to = block.engine() + offset;
  for (const iovec& page : pages) {
    std::memcpy(to, page.iov_base, page_size);
    to += page_size;
  }
}

Result<void> StorePlain::write_to_file(const RamBlock& block, std::uint64_t offset, std::span<const iovec> pages) {
  std::span<const iovec> rest = pages;
  std::vector<iovec> cut;  // of a short write, which is rare
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
      cut = std::vector<iovec>(rest.begin(), rest.end());
      cut.front().iov_base = static_cast<std::byte*>(cut.front().iov_base) + left;
      cut.front().iov_len -= left;
      rest = cut;
    }
  }
  return {};
}

// What is stored for the second time is hot: it will come again, and the engine view may as well have it mapped.
void StorePlain::note_stored(Block& block, std::size_t first, std::size_t end) noexcept {
  for (std::size_t page = block.stored.find_set(first, end); page < end; page = block.stored.find_set(page, end)) {
    const std::size_t stop = block.stored.find_clear(page, end);
    block.mapped.set_range(page, stop - page);
    page = stop;
  }
  block.stored.set_range(first, end - first);
}

// Fills the page tables for the stale pages from `page` on, as far as one page of page tables reaches.
void StorePlain::map_stale(const RamBlock& target, Block& block, std::size_t page) noexcept {
  const std::size_t end =
      block.stale.find_clear(page, std::min((page / chunk_pages + 1) * chunk_pages, block.stale.size()));
  if (!is_huge(target)) touch(target.engine(), page, end);
  block.mapped.set_range(page, end - page);
}

// The next part of [page, end) that is stored in one way; maps stale pages first.
StorePlain::Part StorePlain::next_part(std::size_t index, std::size_t page, std::size_t end) noexcept {
  const std::lock_guard lock(mutex_);
  Block& block = blocks_[index];
  if (block.stale.test(page) && !block.mapped.test(page)) map_stale(map_.at(index), block, page);
  if (block.mapped.test(page)) return {block.mapped.find_clear(page, end), true};
  return {block.stale.find_set(page, block.mapped.find_set(page, end)), false};
}

Result<void> StorePlain::place(const GuestSpan& span, std::span<const iovec> pages) {
  const RamBlock& target = map_.at(span.block());
  Block& block = blocks_[span.block()];
  const std::size_t first = span.offset() / page_size;
  const std::size_t end = first + pages.size();
  if (is_huge(target)) {
    copy_to_view(target, span.offset(), pages);
    placed(span);
    return {};
  }
  for (std::size_t page = first; page < end;) {
    const Part part = next_part(span.block(), page, end);
    const auto pieces = pages.subspan(page - first, part.end - page);
    if (part.by_view) {
      copy_to_view(target, page * page_size, pieces);
    } else {
      MD_CHECK(write_to_file(target, page * page_size, pieces));
    }
    const std::lock_guard lock(mutex_);
    if (!part.by_view) note_stored(block, page, part.end);
    block.stored.set_range(page, part.end - page);
    block.stale.clear_range(page, part.end - page);
    page = part.end;
  }
  return {};
}

bool StorePlain::receive_in_place(const GuestSpan& span) {
  const RamBlock& target = map_.at(span.block());
  if (is_huge(target)) return true;
  const std::lock_guard lock(mutex_);
  Block& block = blocks_[span.block()];
  const std::size_t first = span.offset() / page_size;
  const std::size_t end = first + span.length() / page_size;
  for (std::size_t page = block.mapped.find_clear(first, end); page < end; page = block.mapped.find_clear(page, end)) {
    if (!block.stale.test(page)) return false;
    map_stale(target, block, page);
  }
  return true;
}

bool StorePlain::allocate_huge(const GuestSpan& span) {
  const RamBlock& target = map_.at(span.block());
  if (is_huge(target) || !memfds_have_huge_pages()) return false;
  Block& block = blocks_[span.block()];
  const std::size_t first = span.offset() / page_size;
  const std::size_t count = span.length() / page_size;
  {
    const std::lock_guard lock(mutex_);
    const std::size_t end = first + count;
    if (block.stored.find_set(first, end) != end || block.stale.find_set(first, end) != end) return false;
  }
  // Outside the lock: two threads fill huge pages of their own.
  std::byte* const memory = target.engine() + span.offset();
  ::madvise(memory, span.length(), MADV_HUGEPAGE);
  if (::madvise(memory, span.length(), MADV_POPULATE_WRITE) != 0) return false;
  const std::lock_guard lock(mutex_);
  block.mapped.set_range(first, count);
  return true;
}

void StorePlain::clear(const RamBlock& block, const Bitmap& those, std::size_t first, std::size_t end) noexcept {
  for (std::size_t page = those.find_set(first, end); page < end; page = those.find_set(page, end)) {
    const std::size_t stop = those.find_clear(page, end);
    std::memset(block.engine() + page * page_size, 0, (stop - page) * page_size);
    page = stop;
  }
}

// Stale pages are cleared like stored ones, not given back: they are zero with one write, and the next pass may want
// the memory again. Which pages are to be cleared is asked under the lock, the clearing is done outside.
Result<void> StorePlain::place_zero(const GuestSpan& span) {
  const RamBlock& target = map_.at(span.block());
  Block& block = blocks_[span.block()];
  const std::size_t end = (span.offset() + span.length()) / page_size;
  std::unique_lock lock(mutex_);
  for (std::size_t page = span.offset() / page_size; page < end;) {
    const std::size_t filled = block.stored.find_set(page, block.stale.find_set(page, end));
    if (filled == end) break;
    const std::size_t stop =
        block.stored.test(filled) ? block.stored.find_clear(filled, end) : block.stale.find_clear(filled, end);
    lock.unlock();
    std::memset(target.engine() + filled * page_size, 0, (stop - filled) * page_size);
    lock.lock();
    block.stale.clear_range(filled, stop - filled);
    page = stop;
  }
  return {};
}

Result<std::span<std::byte>> StorePlain::page_to_change(const GuestSpan& page) {
  const std::lock_guard lock(mutex_);
  Block& block = blocks_[page.block()];
  const std::size_t number = page.offset() / page_size;
  // A delta for a page that never came is a delta to zeros.
  clear(map_.at(page.block()), block.stale, number, number + 1);
  block.stored.set(number);
  block.stale.clear(number);
  return map_.memory(page);
}

std::size_t StorePlain::pages_to_guess(const GuestSpan& ahead) {
  const std::lock_guard lock(mutex_);
  const RamBlock& target = map_.at(ahead.block());
  Block& block = blocks_[ahead.block()];
  const std::size_t first = ahead.offset() / page_size;
  const std::size_t end = block.stale.find_clear(first, first + ahead.length() / page_size);
  for (std::size_t page = block.mapped.find_clear(first, end); page < end; page = block.mapped.find_clear(page, end))
    map_stale(target, block, page);
  return end - first;
}

void StorePlain::placed(const GuestSpan& span) {
  const std::lock_guard lock(mutex_);
  Block& block = blocks_[span.block()];
  const std::size_t first = span.offset() / page_size;
  const std::size_t count = span.length() / page_size;
  block.stored.set_range(first, count);
  block.stale.clear_range(first, count);
}

// hugetlb pages once given back can be taken by other programs of the host, so those are cleared instead.
Result<void> StorePlain::forget_stale(std::size_t index) {
  RamBlock& target = map_.at(index);
  Block& block = blocks_[index];
  if (is_huge(target)) {
    clear(target, block.stale, 0, block.stale.size());
  } else {
    for (std::size_t page = block.stale.find_set(0); page < block.stale.size(); page = block.stale.find_set(page)) {
      const std::size_t stop = block.stale.find_clear(page);
      MD_CHECK(target.punch(page * page_size, (stop - page) * page_size));
      page = stop;
    }
  }
  block.stale.clear_all();
  return {};
}

Result<void> StorePlain::finish() {
  const std::lock_guard lock(mutex_);
  for (std::size_t index = 0; index < blocks_.size(); ++index) MD_CHECK(forget_stale(index));
  return {};
}

}  // namespace migrationd::ram
