// SPDX-License-Identifier: Apache-2.0
#include "ram/scatter_reader.hpp"

#include <algorithm>
#include <cstring>

namespace migrationd::ram {
namespace {

constexpr std::size_t header_bytes = stream::ram_word_bytes;
constexpr std::size_t record_bytes = header_bytes + page_size;

}  // namespace

ScatterReader::ScatterReader(transports::BufferedReader& reader, RamMap& map, PageStore& store)
    : reader_(reader),
      map_(map),
      store_(store),
      most_(std::min(most_pages, reader.capacity() / record_bytes)),
      headers_(most_) {
  pieces_.reserve(2 * most_pages);
}

std::byte* ScatterReader::memory(std::size_t record) const noexcept {
  return map_.at(block_).engine() + (page_ + record) * page_size;
}

std::uint64_t ScatterReader::guessed_header(std::size_t record) const noexcept {
  return (page_ + record) * page_size | stream::ram_flag::page | stream::ram_flag::same_block;
}

// Pages from `page` on that one read may be laid over; proved like every place in guest memory.
std::size_t ScatterReader::room_at(std::uint64_t page) const {
  const std::uint64_t pages = map_.at(block_).pages();
  if (page >= pages) return 0;
  const auto ahead = map_.prove(block_, page * page_size, std::min<std::uint64_t>(most_, pages - page) * page_size);
  return ahead ? store_.pages_to_guess(*ahead) : 0;
}

// The start of a record lies in the buffer: it goes where it is guessed to belong. False: it is known to be another.
bool ScatterReader::take_buffered() {
  const ByteView start = reader_.buffered();
  if (start.size() >= record_bytes) return false;
  if (start.size() >= header_bytes && load_be<std::uint64_t>(start.data()) != guessed_header(0)) return false;
  partial_ = start.size();
  const std::size_t of_header = std::min(partial_, header_bytes);
  if (partial_ > 0) std::memcpy(headers_[0].bytes, start.data(), of_header);
  if (partial_ > header_bytes) std::memcpy(memory(0), start.data() + header_bytes, partial_ - header_bytes);
  reader_.consume(partial_);
  return true;
}

// Of the records that `bytes` bytes cover, how many begin with the header guessed; one cut in its header counts.
std::size_t ScatterReader::count_right(std::size_t bytes) const noexcept {
  std::size_t record = 0;
  for (std::size_t at = 0; at < bytes; at += record_bytes, ++record) {
    if (bytes - at < header_bytes) return record + 1;
    if (load_be<std::uint64_t>(headers_[record].bytes) != guessed_header(record)) return record;
  }
  return record;
}

// Bytes [from records, bytes) of what was read go back into the buffer.
void ScatterReader::give_back(std::size_t from, std::size_t bytes) {
  pieces_.clear();
  for (std::size_t record = from, at = from * record_bytes; at < bytes; at += record_bytes, ++record) {
    pieces_.push_back({headers_[record].bytes, std::min(header_bytes, bytes - at)});
    if (bytes - at > header_bytes) pieces_.push_back({memory(record), std::min(page_size, bytes - at - header_bytes)});
  }
  reader_.unread(pieces_);
  partial_ = 0;
}

void ScatterReader::commit(std::size_t pages) {
  if (pages == 0) return;
  // Within what room_at() proved.
  const auto span = map_.prove(block_, page_ * page_size, pages * page_size);
  if (span) store_.placed(*span);
  page_ += pages;
  taken_ += pages;
}

void ScatterReader::note_guess(bool right) noexcept {
  if (right) {
    next_pause_ = 1;
  } else {
    pause_ = next_pause_;
    next_pause_ = std::min(next_pause_ * 2, longest_pause);
  }
}

// One read over `room` records, of which the first has `partial_` bytes already. False: what follows is for others.
Result<bool> ScatterReader::read_some(std::size_t room) {
  pieces_.clear();
  if (partial_ < header_bytes) {
    pieces_.push_back({headers_[0].bytes + partial_, header_bytes - partial_});
    pieces_.push_back({memory(0), page_size});
  } else {
    pieces_.push_back({memory(0) + (partial_ - header_bytes), record_bytes - partial_});
  }
  for (std::size_t record = 1; record < room; ++record) {
    pieces_.push_back({headers_[record].bytes, header_bytes});
    pieces_.push_back({memory(record), page_size});
  }
  MD_TRY(const std::size_t got, reader_.read_pieces(pieces_));
  const std::size_t bytes = partial_ + got;
  const std::size_t begun = (bytes + record_bytes - 1) / record_bytes;
  const std::size_t right = count_right(bytes);
  if (got == 0 || right < begun) {
    // At the stream's end the decoder shall say what is missing.
    give_back(right < begun ? right : 0, bytes);
    commit(right < begun ? right : 0);
    note_guess(right >= least_pages);
    return false;
  }
  const std::size_t whole = bytes / record_bytes;
  partial_ = bytes % record_bytes;
  if (partial_ > 0 && whole > 0) headers_[0] = headers_[whole];
  commit(whole);
  note_guess(true);
  return true;
}

// There is no room for a guess behind the record at hand; if it is known to be a page, the rest of it is awaited.
Result<void> ScatterReader::complete_page() {
  if (partial_ < header_bytes) {
    give_back(0, partial_);
    return {};
  }
  MD_CHECK(reader_.read_exact({memory(0) + (partial_ - header_bytes), record_bytes - partial_}));
  partial_ = 0;
  commit(1);
  return {};
}

Result<std::size_t> ScatterReader::take(std::size_t block, std::uint64_t page) {
  block_ = block;
  page_ = page;
  partial_ = taken_ = 0;
  if (most_ == 0) return taken_;
  if (pause_ > 0) {
    --pause_;
    return taken_;
  }
  std::size_t room = room_at(page_);
  if (room < std::min(least_pages, most_) || !take_buffered()) return taken_;
  while (true) {
    MD_TRY(const bool more, read_some(room));
    if (!more) return taken_;
    room = room_at(page_);
    // The record at hand was in the room of the read before, whatever the room is now.
    if (room < std::min(least_pages, most_)) break;
  }
  if (partial_ > 0) MD_CHECK(complete_page());
  return taken_;
}

}  // namespace migrationd::ram
