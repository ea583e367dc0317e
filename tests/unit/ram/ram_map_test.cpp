// SPDX-License-Identifier: Apache-2.0
#include "ram/ram_map.hpp"
#include "ram/extents.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

using namespace migrationd;
using namespace migrationd::ram;

namespace {

std::unique_ptr<RamBlock> block_of(const char* name, std::uint64_t length) {
  auto block = RamBlock::create(name, length, page_size);
  REQUIRE(block.has_value());
  return std::move(*block);
}

}  // namespace

TEST_CASE("RamBlock.is_sealed_against_shrinking_but_may_grow_in_other_hands") {
  const auto block = block_of("pc.ram", 64 * page_size);
  CHECK(::ftruncate(block->fd(), 0) == -1);
  CHECK(::ftruncate(block->fd(), 128 * page_size) == 0);
  CHECK((::fcntl(block->fd(), F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW)) == F_SEAL_SHRINK);
}

TEST_CASE("RamBlock.starts_empty_and_a_punched_page_is_zero_in_every_view") {
  const auto block = block_of("pc.ram", 64 * page_size);
  CHECK(block->allocated_bytes().value() == 0);
  const auto other = Mapping::of_fd(block->fd(), block->length());
  REQUIRE(other.has_value());
  block->engine()[5 * page_size] = std::byte{7};
  CHECK(other->data()[5 * page_size] == std::byte{7});
  CHECK(block->allocated_bytes().value() == page_size);
  CHECK(bool(block->punch(5 * page_size, page_size)));
  CHECK(block->allocated_bytes().value() == 0);
  CHECK(other->data()[5 * page_size] == std::byte{0});
}

TEST_CASE("RamBlock.refuses_lengths_and_ranges_that_are_not_whole_pages") {
  CHECK_FALSE(RamBlock::create("a", 0, page_size).has_value());
  CHECK_FALSE(RamBlock::create("a", 5000, page_size).has_value());
  CHECK_FALSE(RamBlock::create("a", page_size, 8192).has_value());
  CHECK_FALSE(RamBlock::create("a", page_size, huge_page_size).has_value());
  CHECK_FALSE(RamBlock::create("a", std::uint64_t{1} << 50, page_size).has_value());
  const auto block = block_of("pc.ram", 4 * page_size);
  CHECK_FALSE(bool(block->punch(100, page_size)));
  CHECK_FALSE(bool(block->punch(0, 5 * page_size)));
  CHECK_FALSE(bool(block->punch(~std::uint64_t{0} - page_size + 1, page_size)));
}

TEST_CASE("RamMap.proves_only_what_lies_inside_a_block") {
  RamMap map;
  REQUIRE(map.add(block_of("pc.ram", 4 * page_size)).has_value());
  CHECK(map.prove(0, 0, 4 * page_size).has_value());
  CHECK(map.prove(0, 3 * page_size, page_size).has_value());
  CHECK_FALSE(map.prove(0, 4 * page_size, page_size).has_value());
  CHECK_FALSE(map.prove(0, page_size, ~std::uint64_t{0}).has_value());
  CHECK_FALSE(map.prove(0, ~std::uint64_t{0} - 4095, 2 * page_size).has_value());
  CHECK_FALSE(map.prove(1, 0, page_size).has_value());
  const auto error = map.prove(0, 0x5000, page_size);
  REQUIRE_FALSE(error.has_value());
  CHECK(error.error().text() == "block 'pc.ram': offset 0x5000 is past the end (used 0x4000)");
}

TEST_CASE("RamMap.refuses_a_second_block_of_one_name_and_names_what_is_missing") {
  RamMap map;
  REQUIRE(map.add(block_of("pc.ram", page_size)).has_value());
  CHECK_FALSE(bool(map.add(block_of("pc.ram", page_size))));
  CHECK(map.find("pc.ram").value() == 0);
  CHECK(map.find("pc.bios").error().text().find("pc.bios") != std::string::npos);
}

TEST_CASE("Extents.finds_data_and_holes_without_moving_the_shared_offset_or_allocating") {
  const auto block = block_of("pc.ram", 64 * page_size);
  for (const std::size_t page : {3, 4, 5, 60}) block->engine()[page * page_size] = std::byte{1};
  REQUIRE(::lseek(block->fd(), 777, SEEK_SET) == 777);
  const auto extents = Extents::of(*block);
  REQUIRE(extents.has_value());
  CHECK(extents->next(0, block->length()).value() == Extent{3 * page_size, 3 * page_size});
  CHECK(extents->next(4 * page_size, 5 * page_size).value() == Extent{4 * page_size, page_size});
  CHECK(extents->next(6 * page_size, block->length()).value() == Extent{60 * page_size, page_size});
  CHECK_FALSE(extents->next(61 * page_size, block->length()).value().has_value());
  CHECK(extents->next_hole(0, block->length()).value() == 0);
  CHECK(::lseek(block->fd(), 0, SEEK_CUR) == 777);
  CHECK(block->allocated_bytes().value() == 4 * page_size);
}

TEST_CASE("Extents.tells_huge_pages_from_holes") {
  auto made = RamBlock::create("huge", 3 * huge_page_size, huge_page_size);
  if (!made) {
    WARN("skipped: " << made.error().text());
    return;
  }
  const auto& block = **made;
  const auto extents = Extents::of(block);
  REQUIRE(extents.has_value());
  CHECK_FALSE(extents->next(0, block.length()).value().has_value());
  block.engine()[huge_page_size + 5] = std::byte{1};
  CHECK(extents->next(0, block.length()).value() == Extent{huge_page_size, huge_page_size});
  CHECK(block.allocated_bytes().value() == huge_page_size);
}
