// SPDX-License-Identifier: Apache-2.0
#include "ram/mapped_loader.hpp"

#include "protocol/stream/ram_record.hpp"
#include "ram/decode_next.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

namespace migrationd::ram {
namespace {

constexpr std::size_t slot_bytes = MappedLoader::read_pages * page_size;

std::byte* allocate(std::size_t bytes) {
  return static_cast<std::byte*>(::operator new (bytes, std::align_val_t{page_size}));
}
void release(std::byte* memory) { ::operator delete (memory, std::align_val_t{page_size}); }

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

MappedLoader::MappedLoader(RamMap& map, PageStore& store, transports::SeekableChannel& file,
                           transports::PositionalFile& pages, const StopSource& stop, ReceiveCounters& counters)
    : map_(map),
      store_(store),
      file_(file),
      pages_(pages),
      stop_(stop),
      counters_(counters),
      memory_(allocate(pages.depth() * slot_bytes), release),
      slots_(pages.depth()) {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    slots_[slot].memory = memory_.get() + slot * slot_bytes;
    free_.push_back(static_cast<transports::PositionalFile::Tag>(slot));
  }
}

// The kernel writes into our buffers until the last read is done.
MappedLoader::~MappedLoader() { static_cast<void>(pages_.drain()); }

Result<void> MappedLoader::load(const std::vector<MappedBlock>& blocks) {
  MD_CHECK(check_page_alignment(pages_));
  for (const MappedBlock& block : blocks) {
    MD_TRY(const std::size_t index, map_.find(block.block.name));
    auto loaded = load_block(index, block.place);
    if (!loaded) return std::move(loaded).error().with(fmt::format("block '{}'", printable(block.block.name)));
  }
  return {};
}

Result<void> MappedLoader::load_block(std::size_t index, const MappedPlace& place) {
  Bytes bytes(place.bitmap_bytes);
  auto read = file_.read_at(place.bitmap_offset, bytes);
  if (!read) return std::move(read).error().with("Error reading dirty bitmap");
  MD_TRY(const Bitmap bitmap, stream::decode_mapped_ram_bitmap(bytes, map_.at(index).pages()));
  counters_.zero_pages.add(bitmap.size() - bitmap.count());
  for (std::uint64_t page = bitmap.find_set(0); page < bitmap.size(); page = bitmap.find_set(page)) {
    const std::uint64_t end = bitmap.find_clear(page, std::min<std::uint64_t>(bitmap.size(), page + read_pages));
    MD_CHECK(start(index, place, {page, end - page}));
    page = end;
  }
  // Behind this block's last page, so that an error names the right block.
  while (pages_.in_flight() > 0) MD_CHECK(take_one());
  return {};
}

Result<void> MappedLoader::start(std::size_t index, const MappedPlace& place, PageRun run) {
  if (stop_.requested()) return cancelled_error();
  if (free_.empty()) MD_CHECK(take_one());
  const auto tag = free_.back();
  free_.pop_back();
  Slot& slot = slots_[tag];
  slot.block = index;
  slot.run = run;
  return pages_.start_read(tag, place.pages_offset + run.first * page_size, {slot.memory, run.count * page_size});
}

Result<void> MappedLoader::take_one() {
  auto done = pages_.wait_one();
  if (!done) return std::move(done).error().with("failed to read pages");
  MD_CHECK(this->place(slots_[*done]));
  free_.push_back(*done);
  return {};
}

Result<void> MappedLoader::place(const Slot& slot) {
  MD_TRY(const GuestSpan span, map_.prove(slot.block, slot.run.first * page_size, slot.run.count * page_size));
  pieces_.clear();
  for (std::uint64_t page = 0; page < slot.run.count; ++page)
    pieces_.push_back({slot.memory + page * page_size, page_size});
  counters_.normal_pages.add(slot.run.count);
  return store_.place(span, pieces_);
}

}  // namespace migrationd::ram
