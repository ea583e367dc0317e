// SPDX-License-Identifier: Apache-2.0
#include "ram/xbzrle_sender.hpp"

#include "protocol/stream/xbzrle.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace migrationd::ram {
namespace {

// Zeros, got page by page as they are touched.
Result<Mapping> reserve(std::uint64_t bytes) {
  void* const memory =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return Error::from_errno(fmt::format("xbzrle cache: reserve {} bytes", bytes));
  return Mapping(static_cast<std::byte*>(memory), bytes);
}

stream::PageView view_of(const std::byte* page) noexcept { return stream::PageView(page, page_size); }

}  // namespace

XbzrleSender::XbzrleSender(const RamMap& map, XbzrleCounters& counters) : counters_(counters) {
  for (std::size_t index = 0; index < map.size(); ++index) {
    base_.push_back(total_pages_);
    total_pages_ += map.at(index).pages();
  }
}

XbzrleSender::~XbzrleSender() = default;

Result<void> XbzrleSender::begin_pass(std::uint64_t cache_bytes) {
  take_rates();
  ++pass_;
  if (cache_bytes == cache_bytes_) return {};
  cache_bytes_ = cache_bytes;
  slot_count_ = 0;
  slots_ = nullptr;
  const std::uint64_t slots = std::min(cache_bytes / page_size, std::bit_ceil(total_pages_));
  MD_TRY(pages_, reserve(slots * page_size));
  MD_TRY(slot_memory_, reserve(slots * sizeof(Slot)));
  slots_ = static_cast<Slot*>(static_cast<void*>(slot_memory_.data()));
  slot_count_ = slots;
  return {};
}

void XbzrleSender::take_rates() noexcept {
  const std::uint64_t pages = counters_.pages.get() - pages_before_;
  const std::uint64_t bytes = counters_.bytes.get() - bytes_before_;
  const std::uint64_t misses = counters_.misses.get() - misses_before_;
  const std::uint64_t asked = asked_ - asked_before_;
  if (asked > 0) counters_.miss_rate = static_cast<double>(misses) / static_cast<double>(asked);
  if (bytes > 0) counters_.encoding_rate = static_cast<double>(pages * page_size) / static_cast<double>(bytes);
  pages_before_ += pages;
  bytes_before_ += bytes;
  misses_before_ += misses;
  asked_before_ = asked_;
}

XbzrleSender::Choice XbzrleSender::choose(std::size_t block, std::uint64_t page, const std::byte* memory) {
  if (slot_count_ == 0) return {};
  ++asked_;
  const std::uint64_t key = key_of(block, page);
  const std::uint64_t place = key & (slot_count_ - 1);
  Slot& slot = slots_[place];
  return slot.key == key ? choose_known(slot, copy_of(place), memory)
                         : choose_unknown(slot, copy_of(place), key, memory);
}

XbzrleSender::Choice XbzrleSender::choose_known(Slot& slot, std::byte* copy, const std::byte* memory) {
  slot.pass = pass_;
  std::memcpy(now_.data(), memory, page_size);
  const auto length = stream::xbzrle_encode(view_of(copy), view_of(now_.data()), stream::MutablePage(delta_));
  if (length == 0u) return {Form::unchanged, {}};
  std::memcpy(copy, now_.data(), page_size);
  if (!length) {
    counters_.overflows.add(1);
    return {Form::copy, ByteView(copy, page_size)};
  }
  counters_.pages.add(1);
  counters_.bytes.add(*length);
  return {Form::delta, ByteView(delta_).first(*length)};
}

XbzrleSender::Choice XbzrleSender::choose_unknown(Slot& slot, std::byte* copy, std::uint64_t key,
                                                  const std::byte* memory) {
  counters_.misses.add(1);
  const bool fresh = slot.key != 0 && slot.pass + 1 >= pass_;
  if (fresh) return {};
  std::memcpy(copy, memory, page_size);
  slot = {key, pass_};
  return {Form::copy, ByteView(copy, page_size)};
}

void XbzrleSender::sent_zeros(std::size_t block, std::uint64_t first, std::uint64_t count) noexcept {
  if (slot_count_ == 0) return;
  for (std::uint64_t page = first; page < first + count; ++page) {
    const std::uint64_t key = key_of(block, page);
    const std::uint64_t place = key & (slot_count_ - 1);
    if (slots_[place].key == key) std::memset(copy_of(place), 0, page_size);
  }
}

}  // namespace migrationd::ram
