// SPDX-License-Identifier: Apache-2.0
#include "postcopy/page_lane.hpp"

#include "protocol/stream/commands.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/sections.hpp"
#include "ram/ram_map.hpp"
#include "ram/zero_page.hpp"

#include <array>

namespace migrationd::postcopy {

std::string_view PageLane::name_for(std::size_t block) noexcept {
  if (current_block_ == block) return {};
  current_block_ = block;
  return names_[block];
}

Result<void> PageLane::Turn::append(ByteView bytes) {
  bytes_ += bytes.size();
  return lane_.writer_.append(bytes);
}

Result<void> PageLane::Turn::begin() {
  if (lane_.kind_ == LaneKind::preempt) return {};
  ByteWriter head;
  stream::encode_section_part(head, lane_.section_id_);
  return append(head.view());
}

Result<void> PageLane::Turn::put_raw(ByteView bytes) {
  MD_CHECK(append(bytes));
  return flush();
}

Result<bool> PageLane::Turn::put(std::size_t block, std::uint64_t offset, const std::byte* page) {
  if (ram::is_zero_page(page)) {
    MD_CHECK(put_zero(block, offset));
    return true;
  }
  std::array<std::byte, stream::ram_record_header_max> header;
  const std::size_t size = stream::encode_page_header(header.data(), offset, lane_.name_for(block));
  MD_CHECK(append({header.data(), size}));
  bytes_ += ram::page_size;
  MD_CHECK(lane_.writer_.append_reference({page, ram::page_size}));
  return false;
}

Result<void> PageLane::Turn::put_zero(std::size_t block, std::uint64_t offset) {
  std::array<std::byte, stream::ram_record_header_max> record;
  const std::size_t size = stream::encode_zero_record(record.data(), offset, lane_.name_for(block));
  return append({record.data(), size});
}

Result<void> PageLane::Turn::finish(std::optional<std::uint32_t> ping) {
  if (lane_.kind_ == LaneKind::main) {
    std::array<std::byte, stream::ram_word_bytes> eos;
    MD_CHECK(append({eos.data(), stream::encode_eos(eos.data())}));
    ByteWriter tail;
    stream::encode_footer(tail, lane_.section_id_);
    if (ping) stream::encode_command(tail, stream::command::Ping{*ping});
    MD_CHECK(append(tail.view()));
  }
  return flush();
}

Result<void> PageLane::Turn::end_stream() {
  ByteWriter head;
  stream::encode_section_end(head, lane_.section_id_);
  MD_CHECK(append(head.view()));
  MD_CHECK(finish(std::nullopt));
  ByteWriter eof;
  stream::encode_eof(eof);
  MD_CHECK(append(eof.view()));
  return flush();
}

Result<void> PageLane::Turn::end_records() {
  std::array<std::byte, stream::ram_word_bytes> eos;
  MD_CHECK(append({eos.data(), stream::encode_eos(eos.data())}));
  return flush();
}

}  // namespace migrationd::postcopy
