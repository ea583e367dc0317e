// SPDX-License-Identifier: Apache-2.0
#include "ram/origin_file.hpp"

#include "protocol/stream/layout.hpp"
#include "protocol/stream/mapped_ram.hpp"
#include "ram/ram_map.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>

namespace migrationd::ram {
namespace {

// From one page of a stream to the next of the same block: its bytes and the next one's header.
constexpr std::uint64_t stream_step = page_size + stream::ram_word_bytes;

}  // namespace

Result<BlockPlaces> places_of(const MappedBlock& block, transports::SeekableChannel& file) {
  Bytes bytes(block.place.bitmap_bytes);
  auto read = file.read_at(block.place.bitmap_offset, bytes);
  if (!read) return std::move(read).error().with(fmt::format("block '{}': its bitmap", printable(block.block.name)));
  auto present = stream::decode_mapped_ram_bitmap(bytes, block.block.used_length / page_size);
  if (!present) return std::move(present).error().with(fmt::format("block '{}'", printable(block.block.name)));
  BlockPlaces places;
  places.present = std::move(*present);
  places.first = block.place.pages_offset;
  return places;
}

class OriginFile::Reader final : public PageReader {
 public:
  explicit Reader(const OriginFile& origin) : origin_(origin), buffer_(new Slot[most_pages]) {}

  Result<OriginPiece> look(std::size_t block, std::uint64_t first, std::uint64_t end) override {
    const BlockPlaces& places = origin_.blocks_[block];
    if (places.offsets.empty()) {
      const bool zero = !places.present.test(first);
      return OriginPiece{zero ? places.present.find_set(first, end) : places.present.find_clear(first, end), zero};
    }
    const bool zero = places.offsets[first] == 0;
    std::uint64_t page = first + 1;
    while (page < end && (places.offsets[page] == 0) == zero) ++page;
    return OriginPiece{page, zero};
  }

  Result<void> read(std::size_t block, PageRun run, std::span<const std::byte*> pages) override {
    assert(run.count <= most_pages);
    const BlockPlaces& places = origin_.blocks_[block];
    auto* const memory = reinterpret_cast<std::byte*>(buffer_.get());
    for (std::uint64_t done = 0; done < run.count;) {
      const std::uint64_t count = together(places, run.first + done, run.count - done);
      const std::uint64_t step = places.offsets.empty() ? page_size : stream_step;
      std::byte* const into = memory + done * sizeof(Slot);
      MD_CHECK(read_at(place_of(places, run.first + done), {into, (count - 1) * step + page_size}));
      for (std::uint64_t i = 0; i < count; ++i) pages[done + i] = into + i * step;
      done += count;
    }
    return origin_.guard_.check(origin_.file_.get());
  }

 private:
  // Room for a page and the header behind it; eight bytes keep every page aligned as the search for zeros wants it.
  struct alignas(8) Slot {
    std::byte bytes[stream_step];
  };
  static_assert(sizeof(Slot) == stream_step && stream_step % 8 == 0);

  static std::uint64_t place_of(const BlockPlaces& places, std::uint64_t page) noexcept {
    return places.offsets.empty() ? places.first + page * page_size : places.offsets[page];
  }
  // How many of `count` pages from `first` on lie one behind the other.
  static std::uint64_t together(const BlockPlaces& places, std::uint64_t first, std::uint64_t count) noexcept {
    if (places.offsets.empty()) return count;
    std::uint64_t n = 1;
    while (n < count && places.offsets[first + n] == places.offsets[first] + n * stream_step) ++n;
    return n;
  }
  Result<void> read_at(std::uint64_t offset, std::span<std::byte> into) const {
    while (!into.empty()) {
      const ssize_t got = ::pread(origin_.file_.get(), into.data(), into.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return Error::from_errno(fmt::format("read at {} of the file", hex(offset)));
      if (got == 0)
        return wire_error(fmt::format("the file ends at {}: it was cut off after it was opened", hex(offset)));
      offset += static_cast<std::uint64_t>(got);
      into = into.subspan(static_cast<std::size_t>(got));
    }
    return {};
  }

  const OriginFile& origin_;
  std::unique_ptr<Slot[]> buffer_;
};

Result<std::unique_ptr<PageReader>> OriginFile::open_reader() {
  return std::unique_ptr<PageReader>(std::make_unique<Reader>(*this));
}

std::optional<OriginSource> OriginFile::source() const {
  if (path_.empty()) return std::nullopt;
  return OriginSource{path_, guard_.size(), guard_.modified_ns()};
}

std::uint64_t OriginFile::data_pages() const noexcept {
  std::uint64_t pages = 0;
  for (const BlockPlaces& block : blocks_) {
    pages += block.present.count() +
             static_cast<std::uint64_t>(std::count_if(block.offsets.begin(), block.offsets.end(),
                                                      [](std::uint64_t offset) { return offset != 0; }));
  }
  return pages;
}

}  // namespace migrationd::ram
