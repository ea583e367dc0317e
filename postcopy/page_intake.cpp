// SPDX-License-Identifier: Apache-2.0
#include "postcopy/page_intake.hpp"

#include "ram/decode_next.hpp"

#include <fmt/format.h>

#include <utility>

namespace migrationd::postcopy {

using stream::page_bytes;
using stream::RamKind;
using stream::RamRecord;

PageIntake::PageIntake(transports::BufferedReader& reader, DestinationPages& pages,
                       const std::vector<BlockShape>& placed, PagePlacer& placer, IntakeCounters& counters)
    : reader_(reader), pages_(pages), placed_(placed), placer_(placer), counters_(counters), assembler_(placed) {
  for (std::size_t i = 0; i < pages.blocks().size(); ++i) index_.emplace(pages.blocks()[i].name, i);
}

Result<void> PageIntake::read_stream(std::uint32_t ram_section_id, ReturnChannel& return_channel) {
  for (bool ended = false; !ended;) {
    auto element = ram::decode_next(reader_, stream::decode_element);
    if (!element) return std::move(element).error().with("postcopy: the page stream");
    MD_CHECK(take_element(*element, ram_section_id, return_channel, ended));
  }
  if (assembler_.partial()) return wire_error("postcopy: the stream ends within a host page");
  return {};
}

Result<void> PageIntake::take_element(const stream::Element& element, std::uint32_t ram_section_id,
                                      ReturnChannel& return_channel, bool& ended) {
  std::optional<std::uint32_t> id;
  if (const auto* part = std::get_if<stream::SectionPart>(&element)) id = part->section_id;
  if (const auto* end = std::get_if<stream::SectionEnd>(&element)) id = end->section_id;
  if (id) {
    if (*id != ram_section_id) return wire_error(fmt::format("postcopy: a part of the unknown section {}", *id));
    auto read = read_records(false);
    if (!read) return std::move(read).error().with("postcopy: section 'ram'");
    auto footer = ram::decode_next(
        reader_, [&](ByteView available) { return stream::decode_footer(available, ram_section_id, "ram"); });
    if (!footer) return std::move(footer).error().with("postcopy: section 'ram'");
    return {};
  }
  if (const auto* command = std::get_if<stream::Command>(&element)) {
    if (const auto* ping = std::get_if<stream::command::Ping>(command)) {
      return return_channel.send(stream::reply::Pong{ping->value});
    }
    return wire_error(fmt::format("postcopy: command {} among the pages", stream::command_name(*command)));
  }
  ended = std::holds_alternative<stream::EndOfStream>(element);
  if (!ended) return wire_error("postcopy: a section of a device among the pages");
  return {};
}

Result<bool> PageIntake::read_records(bool may_close) {
  for (std::size_t wanted = stream::ram_word_bytes;;) {
    if (may_close && reader_.buffered().empty()) {
      MD_TRY(const bool closed, reader_.at_end());
      if (closed) return false;
    }
    MD_TRY(const ByteView window, reader_.peek(wanted));
    const RamRecord record = stream::decode_ram_record(window, block_.has_value());
    if (record.kind == RamKind::need_more) {
      wanted = record.size;
      continue;
    }
    if (record.kind == RamKind::malformed) return stream::ram_record_error(window, block_.has_value());
    if (record.kind != RamKind::eos) MD_CHECK(take_record(record));
    reader_.consume(record.size);
    if (record.kind == RamKind::eos) return true;
    wanted = stream::ram_word_bytes;
  }
}

Result<bool> PageIntake::read_bare() {
  auto ended = read_records(true);
  if (!ended) return std::move(ended).error().with("postcopy: preempt channel");
  if (assembler_.partial()) return wire_error("postcopy: preempt channel: it ends within a host page");
  return *ended;
}

Result<void> PageIntake::take_record(const RamRecord& record) {
  if (record.named) {
    const auto found = index_.find(record.name);
    if (found == index_.end())
      return wire_error(fmt::format("a page of block '{}', which was not listed", printable(record.name)));
    block_ = found->second;
  }
  if (record.kind == RamKind::page) return take_page(record.offset, record.payload.data());
  if (record.kind == RamKind::zero) return take_page(record.offset, nullptr);
  return wire_error(fmt::format("a record at {} that is neither page nor zero page", hex(record.offset)));
}

Result<void> PageIntake::take_page(std::uint64_t offset, const std::byte* bytes) {
  const BlockShape& block = placed_[*block_];
  const std::uint64_t page = offset / page_bytes;
  if (page >= block.pages) {
    return wire_error(fmt::format("block '{}': offset {} is past the end (used {})", printable(block.name), hex(offset),
                                  hex(block.pages * page_bytes)));
  }
  MD_TRY(const auto whole, assembler_.take(*block_, page, bytes));
  return whole ? put(*whole) : Result<void>();
}

Result<void> PageIntake::put(const HostPageAssembler::Whole& whole) {
  const std::uint64_t count = placed_[whole.block].host_pages;
  const bool zero = whole.bytes == nullptr;
  const auto arrival = pages_.arrives(whole.block, whole.page, count, zero);
  if (arrival == Arrival::repeated) {
    counters_.repeated_pages.fetch_add(count, std::memory_order_relaxed);
    return {};
  }
  (zero ? counters_.zero_pages : counters_.normal_pages).fetch_add(count, std::memory_order_relaxed);
  if (arrival == Arrival::noted) return {};
  MD_CHECK(zero ? placer_.place_zero(whole.block, whole.page) : placer_.place(whole.block, whole.page, whole.bytes));
  pages_.note_received(whole.block, whole.page, count);
  return {};
}

}  // namespace migrationd::postcopy
