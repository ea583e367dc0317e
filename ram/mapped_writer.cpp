// SPDX-License-Identifier: Apache-2.0
#include "ram/mapped_writer.hpp"

#include "ram/zero_page.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

namespace migrationd::ram {
namespace {

constexpr std::uint64_t bits = 64;  // of a word

constexpr std::uint64_t zero_pages_at_once = 16;
alignas(page_size) constexpr std::array<std::byte, zero_pages_at_once * page_size> zeros{};

// How many of the pages from `first` on are all zero, or all not: [first, result) is of one kind.
std::uint64_t end_of_kind(const std::byte* memory, std::uint64_t first, std::uint64_t end, bool zero) noexcept {
  std::uint64_t page = first;
  while (page < end) {
    __builtin_prefetch(memory + (page + zero_prefetch_pages) * page_size);
    if (is_zero_page(memory + page * page_size) != zero) break;
    ++page;
  }
  return page;
}

}  // namespace

void MappedArea::change(std::size_t block, PageRun run, bool set) noexcept {
  const std::span<std::uint64_t> words = blocks_[block].in_file.words();
  const std::uint64_t end = run.first + run.count;
  for (std::uint64_t page = run.first; page < end;) {
    const std::uint64_t here = std::min(bits - page % bits, end - page);
    const std::uint64_t mask = (here == bits ? ~std::uint64_t{0} : (std::uint64_t{1} << here) - 1) << (page % bits);
    const std::atomic_ref word(words[page / bits]);
    // The barrier behind the pass orders them; most words of untouched memory need no write.
    if (set) {
      word.fetch_or(mask, std::memory_order_relaxed);
    } else if ((word.load(std::memory_order_relaxed) & mask) != 0) {
      word.fetch_and(~mask, std::memory_order_relaxed);
    }
    page += here;
  }
}

MappedWriter::MappedWriter(RamMap& map, MappedArea& area, std::unique_ptr<transports::PositionalFile> pages,
                           bool detect_zeros)
    : map_(map), area_(area), pages_(std::move(pages)), detect_zeros_(detect_zeros) {}

Result<void> MappedWriter::take(const PageBatch& batch) {
  for (const PageRun& run : batch.runs()) {
    if (batch.kind() != BatchKind::data) {
      MD_CHECK(write_zeros(batch.block(), run));
    } else if (detect_zeros_) {
      MD_CHECK(write_what_is_not_zero(batch.block(), run));
    } else {
      MD_CHECK(write_run(batch.block(), run));
    }
  }
  return {};
}

Result<bool> MappedWriter::finish_one() {
  if (pages_->in_flight() == 0) return false;
  MD_CHECK(pages_->wait_one());
  return true;
}

Result<void> MappedWriter::write(std::size_t block, PageRun run, const std::byte* from) {
  if (pages_->in_flight() == pages_->depth()) MD_CHECK(pages_->wait_one());
  const std::uint64_t size = run.count * page_size;
  MD_CHECK(pages_->start_write(0, area_.place(block).pages_offset + run.first * page_size, {from, size}));
  area_.note_written(block, run);
  normal_pages.add(run.count);
  bytes.add(size);
  return {};
}

Result<void> MappedWriter::write_run(std::size_t block, PageRun run) {
  const std::byte* const memory = map_.at(block).engine();
  const std::uint64_t end = run.first + run.count;
  for (std::uint64_t page = run.first; page < end; page += write_pages)
    MD_CHECK(write(block, {page, std::min(write_pages, end - page)}, memory + page * page_size));
  return {};
}

Result<void> MappedWriter::write_zeros(std::size_t block, PageRun run) {
  const std::uint64_t end = run.first + run.count;
  for (std::uint64_t page = run.first; page < end; page += zero_pages_at_once)
    MD_CHECK(write(block, {page, std::min(zero_pages_at_once, end - page)}, zeros.data()));
  return {};
}

Result<void> MappedWriter::write_what_is_not_zero(std::size_t block, PageRun run) {
  const std::byte* const memory = map_.at(block).engine();
  const std::uint64_t end = run.first + run.count;
  for (std::uint64_t page = run.first; page < end;) {
    const std::uint64_t data = end_of_kind(memory, page, end, true);
    if (data != page) {
      area_.note_zero(block, {page, data - page});
      zero_pages.add(data - page);
    }
    page = end_of_kind(memory, data, std::min(end, data + write_pages), false);
    if (page != data) MD_CHECK(write(block, {data, page - data}, memory + data * page_size));
  }
  return {};
}

}  // namespace migrationd::ram
