// SPDX-License-Identifier: Apache-2.0
#include "ram/stream_index.hpp"

#include "protocol/stream/ram_record.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd::ram {
namespace {

constexpr std::size_t large_window = std::size_t{64} << 10;
// Between two pages only a header is wanted.
constexpr std::size_t small_window = 64;
constexpr std::uint64_t look_at_stop_every = 4096;

}  // namespace

StreamIndex::StreamIndex(const RamMap& map, transports::SeekableChannel& file, std::uint64_t file_size,
                         const StopSource& stop)
    : map_(map), file_(file), file_size_(file_size), stop_(stop), window_(large_window) {
  for (std::size_t i = 0; i < map.size(); ++i) {
    BlockPlaces places;
    places.offsets.resize(map.at(i).pages());
    places_.push_back(std::move(places));
  }
}

Result<ByteView> StreamIndex::peek(std::size_t count) {
  const bool inside = position_ >= window_start_ && position_ + count <= window_start_ + window_size_;
  if (!inside) {
    if (position_ > file_size_ || count > file_size_ - position_)
      return wire_error("the file ends in the middle of it");
    const std::size_t usual = sparse_ ? small_window : large_window;
    window_start_ = position_;
    window_size_ = static_cast<std::size_t>(std::min<std::uint64_t>(std::max(count, usual), file_size_ - position_));
    MD_CHECK(file_.read_at(window_start_, {window_.data(), window_size_}));
  }
  const auto start = static_cast<std::size_t>(position_ - window_start_);
  return ByteView(window_).subspan(start, window_size_ - start);
}

Result<void> StreamIndex::note(std::uint64_t offset, std::uint64_t place, std::uint64_t pages) {
  MD_TRY(const GuestSpan span, map_.prove(*current_block_, offset, pages * page_size));
  const auto first = places_[*current_block_].offsets.begin() + static_cast<std::ptrdiff_t>(span.offset() / page_size);
  std::fill(first, first + static_cast<std::ptrdiff_t>(pages), place);
  return {};
}

// True at the end of the body.
Result<bool> StreamIndex::take_record() {
  MD_TRY(ByteView available, peek(stream::ram_word_bytes));
  if (current_block_) {
    const auto zeros = stream::decode_zero_run(available, large_window);
    if (zeros.pages > 0) {
      sparse_ = false;
      position_ += zeros.pages * stream::zero_record_bytes;
      MD_CHECK(note(zeros.offset, 0, zeros.pages));
      return false;
    }
  }
  auto record = stream::decode_ram_header(available, current_block_.has_value());
  while (record.kind == stream::RamKind::need_more) {
    MD_TRY(available, peek(record.size));
    record = stream::decode_ram_header(available, current_block_.has_value());
  }
  if (record.named) {
    MD_TRY(current_block_, map_.find(record.name));
  }
  switch (record.kind) {
    case stream::RamKind::zero:
      MD_CHECK(note(record.offset, 0, 1));
      break;
    case stream::RamKind::page: {
      const std::uint64_t place = position_ + record.size;
      if (place > file_size_ || file_size_ - place < page_size)
        return wire_error("the file ends in the middle of a page");
      MD_CHECK(note(record.offset, place, 1));
      position_ += page_size;
      break;
    }
    case stream::RamKind::eos:
      position_ += record.size;
      return true;
    case stream::RamKind::xbzrle:
    case stream::RamKind::compressed:
      return plan_error(
          "the stream holds pages as changes or compressed, which cannot be had one by one: load the file "
          "(without __org.migrationd_instant-resume)");
    case stream::RamKind::malformed:
      return stream::ram_record_error(available, current_block_.has_value());
    case stream::RamKind::need_more:
    case stream::RamKind::mem_size:
    case stream::RamKind::multifd_flush:
      return wire_error("a record that has no place in a file's RAM section");
  }
  sparse_ = record.kind == stream::RamKind::page;
  position_ += record.size;
  return false;
}

Result<void> StreamIndex::read_body(transports::BufferedReader& reader) {
  position_ = file_.position() - reader.buffered().size();
  window_size_ = 0;
  bool ended = false;
  while (!ended) {
    if (++records_ % look_at_stop_every == 0 && stop_.requested()) return cancelled_error();
    auto taken = take_record();
    if (!taken) return std::move(taken).error().with(fmt::format("the record at {}", hex(position_)));
    ended = *taken;
  }
  reader.forget_buffered();
  file_.seek(position_);
  return {};
}

}  // namespace migrationd::ram
