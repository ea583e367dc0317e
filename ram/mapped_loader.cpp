// SPDX-License-Identifier: Apache-2.0
#include "ram/mapped_loader.hpp"

#include "protocol/stream/ram_record.hpp"
#include "ram/decode_next.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd::ram {
namespace {

// What one worker gets at once, so that two share a block evenly.
constexpr std::uint64_t batch_pages = (std::uint64_t{4} << 20) / page_size;
constexpr std::size_t batch_runs = 256;

Result<MappedBlock> read_block(transports::BufferedReader& reader, transports::SeekableChannel& file,
                               stream::RamSetupDecoder& decoder, std::uint64_t file_size) {
  MD_TRY(auto block, decode_next(reader, [&](ByteView available) { return decoder.next(available); }));
  const std::string context = fmt::format("block '{}'", printable(block.name));
  auto header = decode_next(reader, stream::decode_mapped_ram_header);
  if (!header) return std::move(header).error().with(context);
  const std::uint64_t entry_end = file.position() - reader.buffered().size();
  auto place = check_mapped_block(*header, entry_end, block.used_length, file_size);
  if (!place) return std::move(place).error().with(context);
  reader.forget_buffered();
  file.seek(place->pages_end);
  return MappedBlock{std::move(block), *place};
}

}  // namespace

Result<std::vector<MappedBlock>> read_mapped_setup(transports::BufferedReader& reader,
                                                   transports::SeekableChannel& file) {
  MD_TRY(const std::uint64_t file_size, file.size());
  MD_TRY(const ByteView available, reader.peek(stream::ram_word_bytes));
  const stream::RamRecord record = stream::decode_ram_header(available, false);
  if (record.kind != stream::RamKind::mem_size) return wire_error("the section does not begin with its block list");
  reader.consume(record.size);
  stream::RamSetupDecoder decoder(record.offset, {});
  std::vector<MappedBlock> blocks;
  while (!decoder.done()) {
    MD_TRY(MappedBlock block, read_block(reader, file, decoder, file_size));
    blocks.push_back(std::move(block));
  }
  return blocks;
}

MappedLoader::MappedLoader(RamMap& map, transports::SeekableChannel& file, ReceiveCounters& counters)
    : map_(map), file_(file), counters_(counters), places_(map.size()) {}

Result<std::unique_ptr<MappedLoader>> MappedLoader::make(RamMap& map, PageStore& store,
                                                         transports::SeekableChannel& file,
                                                         std::vector<std::unique_ptr<transports::PositionalFile>> pages,
                                                         StopSource& stop, ThreadRoster& roster,
                                                         ReceiveCounters& counters) {
  std::unique_ptr<MappedLoader> loader(new MappedLoader(map, file, counters));
  std::vector<std::unique_ptr<FileWorker>> workers;
  for (auto& one : pages) {
    MD_CHECK(check_page_alignment(*one));
    auto reader = std::make_unique<MappedReader>(map, store, loader->places_, std::move(one));
    loader->readers_.push_back(reader.get());
    workers.push_back(std::move(reader));
  }
  MD_TRY(loader->workers_, FileWorkers::start("mig/dst/recv", std::move(workers), stop, roster));
  return loader;
}

Result<void> MappedLoader::load(const std::vector<MappedBlock>& blocks) {
  for (const MappedBlock& block : blocks) {
    MD_TRY(const std::size_t index, map_.find(block.block.name));
    places_[index] = block.place;
    auto loaded = load_block(index);
    if (loaded) continue;
    return workers_->explain(std::move(loaded).error()).with(fmt::format("block '{}'", printable(block.block.name)));
  }
  for (const MappedReader* reader : readers_) counters_.normal_pages.add(reader->normal_pages.get());
  return {};
}

Result<void> MappedLoader::load_block(std::size_t index) {
  const MappedPlace& place = places_[index];
  Bytes bytes(place.bitmap_bytes);
  auto read = file_.read_at(place.bitmap_offset, bytes);
  if (!read) return std::move(read).error().with("Error reading dirty bitmap");
  MD_TRY(const Bitmap bitmap, stream::decode_mapped_ram_bitmap(bytes, map_.at(index).pages()));
  counters_.zero_pages.add(bitmap.size() - bitmap.count());
  MD_CHECK(hand_over_pages(index, bitmap));
  // Behind this block's last page, so that an error names the right block.
  return workers_->synchronise();
}

Result<void> MappedLoader::hand_over_pages(std::size_t index, const Bitmap& in_file) {
  batch_.reset(index, BatchKind::data);
  for (std::uint64_t page = in_file.find_set(0); page < in_file.size(); page = in_file.find_set(page)) {
    const std::uint64_t limit = page + batch_pages - batch_.pages();
    std::uint64_t end = in_file.find_clear(page, std::min<std::uint64_t>(in_file.size(), limit));
    const bool full = end == limit;
    // Not in the middle of what can be one huge page.
    if (full && end / pages_per_huge * pages_per_huge > page) end = end / pages_per_huge * pages_per_huge;
    batch_.add({page, end - page});
    page = end;
    if (!full && batch_.runs().size() < batch_runs) continue;
    MD_CHECK(workers_->hand_over(batch_));
    batch_.reset(index, BatchKind::data);
  }
  return batch_.empty() ? Result<void>() : workers_->hand_over(batch_);
}

}  // namespace migrationd::ram
