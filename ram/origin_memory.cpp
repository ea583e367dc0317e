// SPDX-License-Identifier: Apache-2.0
#include "ram/origin_memory.hpp"

#include "ram/extents.hpp"

#include <algorithm>
#include <utility>
#include <vector>

namespace migrationd::ram {
namespace {

// Finding the end of data visits its pages: no farther than anybody needs to know.
constexpr std::uint64_t look_ahead_pages = 1024;

class MemoryReader final : public PageReader {
 public:
  MemoryReader(const RamMap& map, std::vector<Extents> extents) : map_(map), extents_(std::move(extents)) {}

  Result<OriginPiece> look(std::size_t block, std::uint64_t first, std::uint64_t end) override {
    const std::uint64_t from = first * page_size;
    MD_TRY(const std::uint64_t data, extents_[block].next_data(from, end * page_size));
    if (data > from) return OriginPiece{data / page_size, true};
    const std::uint64_t limit = std::min(end, first + look_ahead_pages) * page_size;
    MD_TRY(const std::uint64_t hole, extents_[block].next_hole(from, limit));
    return OriginPiece{std::max(hole / page_size, first + 1), false};
  }
  Result<void> read(std::size_t block, PageRun run, std::span<const std::byte*> pages) override {
    const std::byte* const memory = map_.at(block).engine() + run.first * page_size;
    for (std::uint64_t i = 0; i < run.count; ++i) pages[i] = memory + i * page_size;
    return {};
  }
  Result<void> check() const override { return map_.check(); }

 private:
  const RamMap& map_;
  std::vector<Extents> extents_;
};

}  // namespace

Result<std::unique_ptr<PageReader>> OriginMemory::open_reader() {
  std::vector<Extents> extents;
  for (std::size_t block = 0; block < map_.size(); ++block) {
    MD_TRY(Extents of, Extents::of(map_.at(block)));
    extents.push_back(std::move(of));
  }
  return std::unique_ptr<PageReader>(std::make_unique<MemoryReader>(map_, std::move(extents)));
}

}  // namespace migrationd::ram
