// SPDX-License-Identifier: Apache-2.0
#include "ram/page_scanner.hpp"
#include "tests/unit/catch.hpp"

#include <tuple>

using namespace migrationd;
using namespace migrationd::ram;

namespace {

// Reports what the test says.
class ScriptedLog final : public DirtyLog {
 public:
  std::vector<std::pair<std::size_t, std::size_t>> pages;

  Result<void> start() override { return {}; }
  Result<std::uint64_t> sync(DirtyBitmaps& into) override {
    for (const auto& [block, page] : pages) into[block].set(page);
    const std::uint64_t count = pages.size();
    pages.clear();
    return count;
  }
  void stop() noexcept override {}
  std::string_view kind() const noexcept override { return "scripted"; }
};

using Seen = std::tuple<std::size_t, BatchKind, std::uint64_t, std::uint64_t>;  // block, kind, first, count

std::vector<Seen> sweep(PageScanner& scanner, std::size_t most_batches = 1000000) {
  std::vector<Seen> seen;
  while (most_batches-- > 0) {
    const auto batch = scanner.next();
    REQUIRE(batch.has_value());
    if (*batch == nullptr) break;
    for (const PageRun& run : (*batch)->runs())
      seen.emplace_back((*batch)->block(), (*batch)->kind(), run.first, run.count);
  }
  return seen;
}

RamMap map_of(std::initializer_list<std::size_t> pages) {
  RamMap map;
  for (const std::size_t count : pages) {
    auto block = RamBlock::create("block" + std::to_string(map.size()), count * page_size, page_size);
    REQUIRE(block.has_value());
    REQUIRE(map.add(std::move(*block)).has_value());
  }
  return map;
}

void write(RamMap& map, std::size_t block, std::size_t page) {
  map.at(block).engine()[page * page_size] = std::byte{1};
}

}  // namespace

TEST_CASE("PageScanner.first_pass_yields_data_and_holes_of_every_block_and_reads_no_hole") {
  RamMap map = map_of({100, 8});
  for (const std::size_t page : {0, 1, 2, 50}) write(map, 0, page);
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner.has_value());
  REQUIRE(scanner->begin_first_pass().has_value());
  CHECK(scanner->remaining_pages() == 108);
  CHECK(sweep(*scanner) == std::vector<Seen>{{0, BatchKind::data, 0, 3},
                                             {0, BatchKind::fresh_holes, 3, 47},
                                             {0, BatchKind::data, 50, 1},
                                             {0, BatchKind::fresh_holes, 51, 49},
                                             {1, BatchKind::fresh_holes, 0, 8}});
  CHECK(scanner->remaining_pages() == 0);
  CHECK(map.at(0).allocated_bytes().value() == 4 * page_size);
  CHECK(map.at(1).allocated_bytes().value() == 0);
}

TEST_CASE("PageScanner.later_passes_yield_only_what_was_reported") {
  RamMap map = map_of({100, 8});
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner->begin_first_pass().has_value());
  sweep(*scanner);
  ScriptedLog log;
  write(map, 0, 7);
  write(map, 1, 3);
  log.pages = {{0, 7}, {0, 8}, {1, 3}};
  CHECK(scanner->begin_pass(&log).value() == 3);
  CHECK(scanner->remaining_pages() == 3);
  CHECK(sweep(*scanner) == std::vector<Seen>{{0, BatchKind::data, 7, 2}, {1, BatchKind::data, 3, 1}});
  CHECK(scanner->begin_pass(&log).value() == 0);
  CHECK(sweep(*scanner).empty());
}

TEST_CASE("PageScanner.a_first_pass_cut_short_still_treats_the_rest_as_fresh") {
  RamMap map = map_of({4096});
  for (std::size_t page = 0; page < 2000; ++page) write(map, 0, page);
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner->begin_first_pass().has_value());
  CHECK(sweep(*scanner, 1) == std::vector<Seen>{{0, BatchKind::data, 0, 1024}});
  ScriptedLog log;
  log.pages = {{0, 5}};
  REQUIRE(scanner->begin_pass(&log).has_value());
  CHECK(scanner->remaining_pages() == 4096 - 1024 + 1);
  const auto rest = sweep(*scanner);
  CHECK(rest == std::vector<Seen>{{0, BatchKind::data, 5, 1},
                                  {0, BatchKind::data, 1024, 976},
                                  {0, BatchKind::fresh_holes, 2000, 2096}});
  CHECK(map.at(0).allocated_bytes().value() == 2000 * page_size);
}

TEST_CASE("PageScanner.memory_given_back_goes_as_zeros_and_is_not_read") {
  RamMap map = map_of({64});
  for (std::size_t page = 0; page < 32; ++page) write(map, 0, page);
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner->begin_first_pass().has_value());
  sweep(*scanner);
  REQUIRE(map.at(0).punch(10 * page_size, 2 * page_size).has_value());
  ScriptedLog log;
  log.pages = {{0, 9}, {0, 10}, {0, 11}};
  REQUIRE(scanner->begin_pass(&log).has_value());
  CHECK(sweep(*scanner) == std::vector<Seen>{{0, BatchKind::data, 9, 1}, {0, BatchKind::holes, 10, 2}});
  CHECK(map.at(0).allocated_bytes().value() == 30 * page_size);
}

TEST_CASE("PageScanner.batches_are_bounded") {
  RamMap map = map_of({200000});
  for (std::size_t page = 0; page < 3000; ++page) write(map, 0, page);
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner->begin_first_pass().has_value());
  std::uint64_t pages = 0;
  while (true) {
    const auto batch = scanner->next();
    REQUIRE(batch.has_value());
    if (*batch == nullptr) break;
    CHECK((*batch)->pages() <=
          ((*batch)->kind() == BatchKind::data ? PageScanner::batch_pages : PageScanner::hole_batch_pages));
    pages += (*batch)->pages();
  }
  CHECK(pages == 200000);
}

TEST_CASE("PageScanner.alternating_data_and_holes_stay_cheap_and_exact") {
  RamMap map = map_of({20000});
  for (std::size_t page = 0; page < 20000; page += 2) write(map, 0, page);
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner->begin_first_pass().has_value());
  std::uint64_t data = 0;
  std::uint64_t holes = 0;
  for (const auto& [block, kind, first, count] : sweep(*scanner)) (kind == BatchKind::data ? data : holes) += count;
  CHECK(data == 10000);
  CHECK(holes == 10000);
}

TEST_CASE("PageScanner.says_nothing_of_bits_while_every_page_is_dirty") {
  RamMap map = map_of({100, 8});
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner.has_value());
  REQUIRE(scanner->begin_first_pass().has_value());
  CHECK(scanner->remaining_pages() == 108);
  ScriptedLog log;
  log.pages = {{0, 7}};
  REQUIRE(scanner->begin_pass(&log).has_value());
  CHECK(scanner->remaining_pages() == 108);
  CHECK_FALSE(scanner->take_dirty());
}

TEST_CASE("PageScanner.tells_what_is_dirty_once_something_was_handed_out") {
  RamMap map = map_of({100, 8});
  write(map, 0, 0);
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner.has_value());
  REQUIRE(scanner->begin_first_pass().has_value());
  CHECK(sweep(*scanner, 1) == std::vector<Seen>{{0, BatchKind::data, 0, 1}});
  const auto dirty = scanner->take_dirty();
  REQUIRE(dirty);
  CHECK((*dirty)[0].count() == 99);
  CHECK_FALSE((*dirty)[0].test(0));
  CHECK((*dirty)[1].count() == 8);
}

TEST_CASE("PageScanner.tells_what_is_dirty_where_a_block_stays") {
  RamMap map = map_of({100, 8});
  auto scanner = PageScanner::of(map);
  REQUIRE(scanner.has_value());
  scanner->leave_out({true, false});
  REQUIRE(scanner->begin_first_pass().has_value());
  CHECK(scanner->remaining_pages() == 8);
  const auto dirty = scanner->take_dirty();
  REQUIRE(dirty);
  CHECK((*dirty)[0].count() == 0);
  CHECK((*dirty)[1].count() == 8);
}
