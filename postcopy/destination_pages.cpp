// SPDX-License-Identifier: Apache-2.0
#include "postcopy/destination_pages.hpp"

#include "protocol/stream/return_path.hpp"

#include <algorithm>
#include <cstring>

namespace migrationd::postcopy {

DestinationPages::DestinationPages(std::vector<BlockShape> blocks) : blocks_(std::move(blocks)) {
  for (const BlockShape& block : blocks_) state_.push_back({Bitmap(block.pages), Bitmap(block.pages)});
}

bool DestinationPages::received_locked(HostPage page) const noexcept {
  const std::uint64_t end = page.page + unit(page.block);
  return state_[page.block].received.find_clear(page.page, end) == end;
}

PageNeed DestinationPages::need(HostPage page, int thread) {
  const std::lock_guard lock(mutex_);
  if (received_locked(page)) return PageNeed::received;
  if (blocktime_ && thread != 0) blocktime_->fault(page.block, page.page, thread, Blocktime::Clock::now());
  Bitmap& asked = state_[page.block].asked;
  if (asked.test(page.page)) return PageNeed::asked;
  asked.set(page.page);
  ++outstanding_;
  return PageNeed::ask;
}

std::uint64_t DestinationPages::note_received(std::size_t block, std::uint64_t page, std::uint64_t count) {
  const std::lock_guard lock(mutex_);
  Block& state = state_[block];
  const std::uint64_t end = page + count;
  std::uint64_t fresh = 0;
  for (std::uint64_t at = state.received.find_clear(page, end); at < end; at = state.received.find_clear(at, end)) {
    const std::uint64_t stop = state.received.find_set(at, end);
    state.received.set_range(at, stop - at);
    fresh += stop - at;
  }
  // Few pages are asked for: what is not is passed over in words.
  for (std::uint64_t at = page - page % unit(block); at < end; at += unit(block)) {
    at = state.asked.find_set(at, end);
    if (at >= end) break;
    if (!received_locked({block, at})) continue;
    state.asked.clear(at);
    --outstanding_;
    if (blocktime_) blocktime_->placed(block, at, Blocktime::Clock::now());
  }
  return fresh;
}

Arrival DestinationPages::arrives(std::size_t block, std::uint64_t page, std::uint64_t count, bool zero) {
  const std::lock_guard lock(mutex_);
  Block& state = state_[block];
  if (state.received.find_clear(page, page + count) == page + count) return Arrival::repeated;
  if (!zero || state.asked.test(page - page % unit(block))) return Arrival::place;
  state.received.set_range(page, count);
  return Arrival::noted;
}

void DestinationPages::note_dropped(std::size_t block, std::uint64_t page, std::uint64_t count) {
  const std::lock_guard lock(mutex_);
  state_[block].received.clear_range(page, count);
}

void DestinationPages::forget_partial() {
  const std::lock_guard lock(mutex_);
  for (std::size_t block = 0; block < blocks_.size(); ++block) {
    const std::uint64_t size = unit(block);
    if (size == 1) continue;
    Bitmap& received = state_[block].received;
    for (std::uint64_t page = 0; page < blocks_[block].pages; page += size) {
      if (!received_locked({block, page})) received.clear_range(page, size);
    }
  }
}

std::uint64_t DestinationPages::outstanding() const {
  const std::lock_guard lock(mutex_);
  return outstanding_;
}

std::vector<HostPage> DestinationPages::outstanding_pages() const {
  const std::lock_guard lock(mutex_);
  std::vector<HostPage> out;
  for (std::size_t block = 0; block < blocks_.size(); ++block) {
    const Bitmap& asked = state_[block].asked;
    for (std::size_t page = asked.find_set(0); page < asked.size(); page = asked.find_set(page + 1)) {
      out.push_back({block, page});
    }
  }
  return out;
}

std::uint64_t DestinationPages::missing() const {
  const std::lock_guard lock(mutex_);
  std::uint64_t missing = 0;
  for (const Block& block : state_) missing += block.received.size() - block.received.count();
  return missing;
}

std::optional<HostPage> DestinationPages::next_unasked(HostPage from) const {
  const std::lock_guard lock(mutex_);
  for (std::size_t block = from.block; block < blocks_.size(); ++block) {
    const Block& state = state_[block];
    std::uint64_t page = block == from.block ? from.page : 0;
    for (; page < blocks_[block].pages; page += unit(block)) {
      page = state.received.find_clear(page);
      if (page >= blocks_[block].pages) break;
      page -= page % unit(block);
      if (!state.asked.test(page)) return HostPage{block, page};
    }
  }
  return std::nullopt;
}

Bytes DestinationPages::received_bitmap(std::size_t block) const {
  const std::lock_guard lock(mutex_);
  const Bitmap& received = state_[block].received;
  Bytes out(stream::received_bitmap_bytes(received.size()));
  // Words of a little-endian host are the order of the wire (base/bitmap.hpp).
  std::memcpy(out.data(), received.words().data(), std::min(out.size(), received.words().size_bytes()));
  return out;
}

void DestinationPages::start_blocktime(std::size_t vcpus) {
  const std::lock_guard lock(mutex_);
  blocktime_.emplace(vcpus);
}

std::optional<BlocktimeReport> DestinationPages::blocktime() const {
  const std::lock_guard lock(mutex_);
  if (!blocktime_) return std::nullopt;
  return blocktime_->report();
}

}  // namespace migrationd::postcopy
