// SPDX-License-Identifier: Apache-2.0
#include "ram/sink_mapped.hpp"

#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "ram/zero_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace migrationd::ram {
namespace {

// The largest write: enough for any disk, little enough for a rate limit and a stop.
constexpr std::uint64_t write_pages = (std::uint64_t{1} << 20) / page_size;
constexpr std::uint64_t prefetch_pages = 8;

// How many of the pages from `first` on are all zero, or all not: [first, result) is of one kind.
std::uint64_t end_of_kind(const std::byte* memory, std::uint64_t first, std::uint64_t end, bool zero) noexcept {
  std::uint64_t page = first;
  while (page < end) {
    __builtin_prefetch(memory + (page + prefetch_pages) * page_size);
    if (is_zero_page(memory + page * page_size) != zero) break;
    ++page;
  }
  return page;
}

}  // namespace

SinkMapped::SinkMapped(RamMap& map, transports::BufferedWriter& writer, transports::SeekableChannel& stream,
                       std::unique_ptr<transports::PositionalFile> pages, const StopSource& stop,
                       SendCounters& counters)
    : map_(map), writer_(writer), stream_(stream), pages_(std::move(pages)), counters_(counters), pacer_(stop) {}

Result<std::unique_ptr<SinkMapped>> SinkMapped::make(RamMap& map, transports::BufferedWriter& writer,
                                                     transports::SeekableChannel& stream,
                                                     std::unique_ptr<transports::PositionalFile> pages,
                                                     const StopSource& stop, SendCounters& counters) {
  MD_CHECK(check_page_alignment(*pages));
  return std::unique_ptr<SinkMapped>(new SinkMapped(map, writer, stream, std::move(pages), stop, counters));
}

Result<void> SinkMapped::write_block_list() {
  ByteWriter total;
  stream::encode_mem_size(total, map_.total_bytes());
  MD_CHECK(writer_.append(total.view()));
  for (std::size_t index = 0; index < map_.size(); ++index) {
    const RamBlock& block = map_.at(index);
    ByteWriter entry;
    entry.str8(block.name()).u64(block.length());
    MD_CHECK(writer_.flush());
    const std::uint64_t entry_end = stream_.position() + entry.size() + stream::mapped_ram_header_bytes;
    MD_TRY(const MappedPlace place, place_mapped_block(entry_end, block.length()));
    stream::encode_mapped_ram_header(entry, header_of(place));
    MD_CHECK(writer_.append(entry.view()));
    MD_CHECK(writer_.flush());
    stream_.seek(place.pages_end);
    blocks_.push_back({place, Bitmap(block.pages())});
  }
  return {};
}

void SinkMapped::note_zeros(std::size_t block, PageRun run) noexcept {
  blocks_[block].in_file.clear_range(run.first, run.count);
  counters_.zero_pages.add(run.count);
}

Result<void> SinkMapped::write_run(std::size_t block, PageRun run) {
  const std::uint64_t bytes = run.count * page_size;
  const std::uint64_t offset = run.first * page_size;
  if (pages_->in_flight() == pages_->depth()) MD_CHECK(pages_->wait_one());
  MD_CHECK(
      pages_->start_write(0, blocks_[block].place.pages_offset + offset, {map_.at(block).engine() + offset, bytes}));
  blocks_[block].in_file.set_range(run.first, run.count);
  counters_.normal_pages.add(run.count);
  counters_.transferred.add(bytes);
  page_bytes_ += bytes;
  pacer_.sent(bytes);
  return pacer_.pace([this] { return pages_->drain(); });
}

Result<void> SinkMapped::send_data(std::size_t block, PageRun run) {
  const std::byte* const memory = map_.at(block).engine();
  const std::uint64_t end = run.first + run.count;
  for (std::uint64_t page = run.first; page < end;) {
    const std::uint64_t data = end_of_kind(memory, page, end, true);
    if (data != page) note_zeros(block, {page, data - page});
    page = end_of_kind(memory, data, std::min(end, data + write_pages), false);
    if (page != data) MD_CHECK(write_run(block, {data, page - data}));
  }
  return {};
}

Result<void> SinkMapped::send(const PageBatch& batch) {
  for (const PageRun& run : batch.runs()) {
    if (batch.kind() == BatchKind::data) {
      MD_CHECK(send_data(batch.block(), run));
    } else {
      note_zeros(batch.block(), run);
    }
  }
  return {};
}

Result<void> SinkMapped::finish_pass() { return pages_->drain(); }

Result<void> SinkMapped::end_memory() {
  for (std::size_t index = 0; index < blocks_.size(); ++index) {
    const Bytes bitmap = stream::encode_mapped_ram_bitmap(blocks_[index].in_file);
    auto written = stream_.write_at(blocks_[index].place.bitmap_offset, bitmap);
    if (!written) {
      return std::move(written).error().with(fmt::format("bitmap of block '{}'", printable(map_.at(index).name())));
    }
  }
  return {};
}

Result<void> SinkMapped::end_body() {
  std::array<std::byte, stream::ram_word_bytes> record;
  const std::size_t size = stream::encode_eos(record.data());
  counters_.transferred.add(size);
  return writer_.append({record.data(), size});
}

}  // namespace migrationd::ram
