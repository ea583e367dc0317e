// SPDX-License-Identifier: Apache-2.0
#include "ram/ram_section_reader.hpp"

#include "protocol/stream/xbzrle.hpp"
#include "ram/decode_next.hpp"
#include "ram/multifd_receiver.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::ram {

using stream::RamKind;
using stream::RamRecord;

namespace {

std::string at_block(const RamBlock& block, std::uint64_t offset) {
  return fmt::format("block '{}' at {}", printable(block.name()), hex(offset));
}

}  // namespace

Result<std::vector<stream::RamSetupBlock>> read_ram_setup(transports::BufferedReader& reader,
                                                          stream::RamSetupOptions options) {
  MD_TRY(const ByteView available, reader.peek(stream::ram_word_bytes));
  const RamRecord record = stream::decode_ram_header(available, false);
  if (record.kind == RamKind::malformed) return stream::ram_record_error(available, false);
  if (record.kind != RamKind::mem_size) return wire_error("the section does not begin with its block list");
  reader.consume(record.size);
  stream::RamSetupDecoder decoder(record.offset, options);
  std::vector<stream::RamSetupBlock> list;
  while (!decoder.done()) {
    MD_TRY(auto block, decode_next(reader, [&](ByteView bytes) { return decoder.next(bytes); }));
    list.push_back(std::move(block));
  }
  return list;
}

RamSectionReader::RamSectionReader(transports::BufferedReader& reader, RamMap& map, PageStore& store,
                                   ReceiveCounters& counters)
    : reader_(reader), map_(map), store_(store), counters_(counters), scatter_(reader, map, store) {
  gathered_.reserve(gather_pages);
}

Result<void> RamSectionReader::read_body() {
  std::size_t wanted = stream::ram_word_bytes;
  while (true) {
    MD_TRY(const ByteView window, reader_.peek(wanted));
    std::size_t taken = 0;
    auto more = take_window(window, taken, wanted);
    if (!more) {
      gathered_.clear();
      return std::move(more).error();
    }
    // Placed before the buffer moves: what is gathered are views into it.
    MD_CHECK(place_gathered());
    reader_.consume(taken);
    if (!*more) return {};
    const std::uint64_t before = reader_.total_read();
    MD_CHECK(take_ahead());
    // What was missing has come, and what is at the front now is another record.
    if (reader_.total_read() != before) wanted = stream::ram_word_bytes;
  }
}

// The buffer holds no whole record. If the last one was a page, the next is probably the next page.
Result<void> RamSectionReader::take_ahead() {
  // With multifd the room ahead may be filled by another thread before a wrong guess is put right.
  if (!next_page_ || multifd_ != nullptr) return {};
  MD_TRY(const std::size_t pages, scatter_.take(*block_, *next_page_));
  counters_.normal_pages.add(pages);
  *next_page_ += pages;
  return {};
}

Result<bool> RamSectionReader::take_window(ByteView window, std::size_t& taken, std::size_t& wanted) {
  while (true) {
    const ByteView rest = window.subspan(taken);
    const RamRecord record = stream::decode_ram_record(rest, block_.has_value());
    if (record.kind == RamKind::need_more) {
      wanted = record.size;
      return true;
    }
    if (record.kind == RamKind::malformed && hook_ != nullptr && stream::is_rdma_hook(rest)) {
      MD_CHECK(place_gathered());
      MD_CHECK(hook_->serve());
      taken += stream::ram_word_bytes;
      continue;
    }
    if (record.kind == RamKind::zero && !record.named) {
      // The most frequent record of a sparse guest: as many as follow each other, in one go.
      const auto run = stream::decode_zero_run(rest, rest.size() / stream::zero_record_bytes);
      next_page_.reset();
      MD_CHECK(take_zeros(run.offset, run.pages));
      taken += run.pages * stream::zero_record_bytes;
      continue;
    }
    MD_TRY(const bool more, take_record(rest, record));
    taken += record.size;
    if (!more) return false;
  }
}

Result<bool> RamSectionReader::take_record(ByteView rest, const RamRecord& record) {
  MD_CHECK(choose_block(record));
  next_page_.reset();
  switch (record.kind) {
    case RamKind::page:
      MD_CHECK(take_page(record));
      return true;
    case RamKind::zero:
      MD_CHECK(take_zeros(record.offset, 1));
      return true;
    case RamKind::xbzrle:
    case RamKind::compressed:
      MD_CHECK(take_encoded(record));
      return true;
    case RamKind::eos:
      MD_CHECK(place_gathered());
      if (multifd_ != nullptr) MD_CHECK(multifd_->at_end_of_section());
      return false;
    case RamKind::multifd_flush:
      MD_CHECK(place_gathered());
      if (multifd_ == nullptr)
        return wire_error("a multifd synchronisation point, but this migration has no multifd channels");
      MD_CHECK(multifd_->at_flush());
      return true;
    case RamKind::mem_size:
      return wire_error("a second block list");
    case RamKind::malformed:
    case RamKind::need_more:
      break;
  }
  return stream::ram_record_error(rest, block_.has_value());
}

Result<void> RamSectionReader::choose_block(const RamRecord& record) {
  if (!record.named) return {};
  MD_CHECK(place_gathered());
  const auto found = map_.find(record.name);
  if (!found) return wire_error(fmt::format("a page of block '{}', which was not listed", printable(record.name)));
  block_ = *found;
  return {};
}

Result<void> RamSectionReader::take_page(const RamRecord& record) {
  const bool continues = !gathered_.empty() && record.offset == gathered_offset_ + gathered_.size() * page_size;
  if (!continues || gathered_.size() == gather_pages) {
    MD_CHECK(place_gathered());
    gathered_offset_ = record.offset;
  }
  gathered_.push_back({const_cast<std::byte*>(record.payload.data()), page_size});
  next_page_ = record.offset / page_size + 1;
  return {};
}

Result<void> RamSectionReader::place_gathered() {
  if (gathered_.empty()) return {};
  MD_TRY(const GuestSpan span, map_.prove(*block_, gathered_offset_, gathered_.size() * page_size));
  MD_CHECK(store_.place(span, gathered_));
  counters_.normal_pages.add(gathered_.size());
  gathered_.clear();
  return {};
}

Result<void> RamSectionReader::take_zeros(std::uint64_t offset, std::size_t pages) {
  // Order matters: a page and then zeros for it.
  MD_CHECK(place_gathered());
  MD_TRY(const GuestSpan span, map_.prove(*block_, offset, pages * page_size));
  MD_CHECK(store_.place_zero(span));
  counters_.zero_pages.add(pages);
  return {};
}

Result<void> RamSectionReader::take_encoded(const RamRecord& record) {
  MD_CHECK(place_gathered());
  MD_TRY(const GuestSpan span, map_.prove(*block_, record.offset, page_size));
  MD_TRY(const auto memory, store_.page_to_change(span));
  const stream::MutablePage page = memory.first<page_size>();
  if (record.kind == RamKind::compressed && !inflater_) inflater_.emplace();
  auto done = record.kind == RamKind::xbzrle ? stream::xbzrle_decode(record.payload, page)
                                             : inflater_->inflate(record.payload, page);
  if (!done) return std::move(done).error().with(at_block(map_.at(*block_), record.offset));
  counters_.normal_pages.add(1);
  return {};
}

}  // namespace migrationd::ram
