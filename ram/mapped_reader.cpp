// SPDX-License-Identifier: Apache-2.0
#include "ram/mapped_reader.hpp"

#include <algorithm>
#include <new>
#include <utility>

namespace migrationd::ram {
namespace {

constexpr std::size_t buffer_bytes = MappedReader::buffer_pages * page_size;

std::byte* allocate(std::size_t bytes) {
  return static_cast<std::byte*>(::operator new (bytes, std::align_val_t{page_size}));
}
void release(std::byte* memory) { ::operator delete (memory, std::align_val_t{page_size}); }

}  // namespace

MappedReader::MappedReader(RamMap& map, PageStore& store, const std::vector<MappedPlace>& places,
                           std::unique_ptr<transports::PositionalFile> pages)
    : map_(map),
      store_(store),
      places_(places),
      buffers_(allocate(pages->depth() * buffer_bytes), release),
      slots_(pages->depth()),
      pages_(std::move(pages)) {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    slots_[slot].buffer = buffers_.get() + slot * buffer_bytes;
    free_.push_back(static_cast<transports::PositionalFile::Tag>(slot));
  }
}

// As large a piece as can be read in one way.
Result<PageRun> MappedReader::next_piece(std::size_t block, PageRun rest, bool& in_place) {
  if (rest.first % pages_per_huge == 0 && rest.count >= pages_per_huge) {
    MD_TRY(const GuestSpan huge, map_.prove(block, rest.first * page_size, huge_page_size));
    store_.allocate_huge(huge);
  }
  const PageRun large{rest.first, std::min(rest.count, direct_pages)};
  MD_TRY(const GuestSpan span, map_.prove(block, large.first * page_size, large.count * page_size));
  in_place = store_.receive_in_place(span);
  return in_place ? large : PageRun{rest.first, std::min(rest.count, buffer_pages)};
}

Result<void> MappedReader::take(const PageBatch& batch) {
  for (const PageRun& run : batch.runs()) {
    for (PageRun rest = run; rest.count > 0;) {
      bool in_place = false;
      MD_TRY(const PageRun piece, next_piece(batch.block(), rest, in_place));
      MD_CHECK(start(batch.block(), piece, in_place));
      rest = {rest.first + piece.count, rest.count - piece.count};
    }
  }
  return {};
}

Result<void> MappedReader::start(std::size_t block, PageRun run, bool in_place) {
  if (free_.empty()) MD_CHECK(finish_one());
  const auto tag = free_.back();
  free_.pop_back();
  Slot& slot = slots_[tag];
  slot.block = block;
  slot.run = run;
  slot.in_place = in_place;
  std::span<std::byte> into(slot.buffer, run.count * page_size);
  if (in_place) {
    MD_TRY(const GuestSpan span, map_.prove(block, run.first * page_size, run.count * page_size));
    into = map_.memory(span);
  }
  return pages_->start_read(tag, places_[block].pages_offset + run.first * page_size, into);
}

Result<bool> MappedReader::finish_one() {
  if (pages_->in_flight() == 0) return false;
  auto done = pages_->wait_one();
  if (!done) return std::move(done).error().with("failed to read pages");
  MD_CHECK(finish(slots_[*done]));
  free_.push_back(*done);
  return true;
}

Result<void> MappedReader::finish(const Slot& slot) {
  MD_TRY(const GuestSpan span, map_.prove(slot.block, slot.run.first * page_size, slot.run.count * page_size));
  normal_pages.add(slot.run.count);
  if (slot.in_place) {
    store_.placed(span);
    return {};
  }
  pieces_.clear();
  for (std::uint64_t page = 0; page < slot.run.count; ++page)
    pieces_.push_back({slot.buffer + page * page_size, page_size});
  return store_.place(span, pieces_);
}

}  // namespace migrationd::ram
