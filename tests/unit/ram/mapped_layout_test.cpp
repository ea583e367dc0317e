// SPDX-License-Identifier: Apache-2.0
// Where things lie in a mapped-ram file: the example is a real file of QEMU 10.0, a guest of 64 MiB.
#include "ram/mapped_layout.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::ram;

namespace {

struct Row {
  std::uint64_t length, entry_end, bitmap_bytes, pages, pages_end;
};
constexpr Row file_of_qemu[] = {
    {0x4000000, 0x8e, 2048, 0x100000, 0x4100000},  {0x20000, 0x4100039, 8, 0x4200000, 0x4220000},
    {0x40000, 0x422002c, 8, 0x4300000, 0x4340000}, {0x20000, 0x434002b, 8, 0x4400000, 0x4420000},
    {0x1000, 0x442003a, 8, 0x4500000, 0x4501000},  {0x1000, 0x4501037, 8, 0x4600000, 0x4601000},
};
constexpr std::uint64_t size_of_qemus_file = 73516452;

std::string refusal(const stream::MappedRamHeader& header, std::uint64_t entry_end, std::uint64_t length,
                    std::uint64_t file_size) {
  const auto place = check_mapped_block(header, entry_end, length, file_size);
  REQUIRE_FALSE(place.has_value());
  return place.error().text();
}

}  // namespace

TEST_CASE("MappedLayout.places_blocks_where_QEMU_does") {
  for (const Row& row : file_of_qemu) {
    const auto place = place_mapped_block(row.entry_end, row.length);
    REQUIRE(place.has_value());
    CHECK(*place == MappedPlace{row.entry_end, row.bitmap_bytes, row.pages, row.pages_end});
    const auto checked = check_mapped_block(header_of(*place), row.entry_end, row.length, size_of_qemus_file);
    REQUIRE(checked.has_value());
    CHECK(*checked == *place);
  }
  // With offset=0x1000 the bitmap moves, the pages do not.
  CHECK(place_mapped_block(0x108e, 0x4000000)->pages_offset == 0x100000);
}

TEST_CASE("MappedLayout.takes_pages_that_are_not_aligned_to_1_MiB") {
  CHECK(check_mapped_block({1, 4096, 0x100, 0x1000}, 0x100, 0x5000, 0x6000).has_value());
  // A gap in front of the bitmap does no harm either.
  CHECK(check_mapped_block({1, 4096, 0x200, 0x1000}, 0x100, 0x5000, 0x6000).has_value());
}

TEST_CASE("MappedLayout.refuses_regions_that_overlap_or_leave_the_file") {
  CHECK(refusal({1, 4096, 0xff, 0x1000}, 0x100, 0x5000, 0x6000) ==
        "bitmap at 0xff overlaps what is in front of it, up to 0x100");
  CHECK(refusal({1, 4096, 0xffc, 0x1000}, 0x100, 0x5000, 0x6000) ==
        "pages at 0x1000 overlap the bitmap, 0xffc to 0x1004");
  CHECK(refusal({1, 4096, 0x100, 0}, 0x100, 0x5000, 0x6000) == "pages at 0x0 overlap the bitmap, 0x100 to 0x108");
  CHECK(refusal({1, 4096, 0x100, 0x1000}, 0x100, 0x5000, 0x5fff) ==
        "pages reach to 0x6000, but the file ends at 0x5fff: it is cut off");
}

TEST_CASE("MappedLayout.no_number_makes_it_overflow") {
  const std::uint64_t large = ~std::uint64_t{0};
  CHECK(refusal({1, 4096, large, 0x1000}, 0x100, 0x5000, large).find("past what a file can hold") != std::string::npos);
  CHECK(refusal({1, 4096, 0x100, large - 4095}, 0x100, 0x5000, large).find("past what") != std::string::npos);
  CHECK(refusal({1, 4096, 0x100, 0x1000}, 0x100, large - 4095, large).find("past what") != std::string::npos);
  CHECK_FALSE(place_mapped_block(0x7fffffffffffff00, 0x1000).has_value());
  CHECK_FALSE(place_mapped_block(0x100, 0x7ffffffffffff000).has_value());
  CHECK_FALSE(place_mapped_block(large, large - 4095).has_value());
}
