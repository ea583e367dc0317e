// SPDX-License-Identifier: Apache-2.0
#include "postcopy/switch_over.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::postcopy;
using stream::command::PostcopyRamDiscard;

namespace {

ram::DirtyBitmaps none(std::span<const BlockShape> blocks) {
  ram::DirtyBitmaps bitmaps;
  for (const BlockShape& block : blocks) bitmaps.emplace_back(block.pages);
  return bitmaps;
}

}  // namespace

TEST_CASE("SwitchOver.advise_ors_the_page_sizes") {
  const std::vector<BlockShape> blocks{{"pc.ram", 1024, 512}, {"rom", 4, 1}};
  const auto sizes = advise(blocks).sizes;
  REQUIRE(sizes);
  CHECK(sizes->page_sizes == 0x201000);
  CHECK(sizes->target_page == 0x1000);
}

TEST_CASE("SwitchOver.discards_are_the_dirty_runs_twelve_to_a_command") {
  const std::vector<BlockShape> blocks{{"a", 64, 1}, {"clean", 8, 1}, {"b", 8, 1}};
  auto lacking = none(blocks);
  for (std::size_t page = 1; page < 30; page += 2) lacking[0].set(page);  // 15 runs
  lacking[2].set_range(2, 6);
  const auto commands = plan_discards(blocks, lacking);
  REQUIRE(commands.size() == 3);
  CHECK(commands[0].block == "a");
  CHECK(commands[0].ranges.size() == 12);
  CHECK(commands[0].ranges[1] == PostcopyRamDiscard::Range{0x3000, 0x1000});
  CHECK(commands[1].block == "a");
  CHECK(commands[1].ranges.size() == 3);
  CHECK(commands[2] == PostcopyRamDiscard{"b", {{0x2000, 0x6000}}});
}

TEST_CASE("SwitchOver.huge_pages_are_discarded_whole") {
  const std::vector<BlockShape> blocks{{"m0", 4096, 512}};
  auto lacking = none(blocks);
  lacking[0].set(3);
  lacking[0].set(1023);
  lacking[0].set(2048);
  const auto commands = plan_discards(blocks, lacking);
  REQUIRE(commands.size() == 1);
  CHECK(commands[0].ranges == std::vector<PostcopyRamDiscard::Range>{{0, 0x400000}, {0x800000, 0x200000}});
  CHECK(lacking[0].count() == 3 * 512);
}

TEST_CASE("SwitchOver.a_machine_that_lacks_nothing_is_sent_one_page_again") {
  const std::vector<BlockShape> blocks{{"pc.ram", 1024, 512}, {"rom", 4, 1}};
  auto lacking = none(blocks);
  const auto commands = plan_discards(blocks, lacking);
  REQUIRE(commands.size() == 1);
  CHECK(commands[0] == PostcopyRamDiscard{"pc.ram", {{0, 0x200000}}});
  CHECK(lacking[0].count() == 512);
}

TEST_CASE("SwitchOver.package_begins_with_listen_and_ends_with_run") {
  stream::DeviceSection device;
  device.section_id = 7;
  device.name = "timer";
  device.version_id = 2;
  device.body = Bytes(3, std::byte{0xaa});
  ByteWriter out;
  REQUIRE(encode_package(out, std::vector<stream::DeviceSection>{device}).has_value());
  const ByteView bytes = out.view();
  const auto at = [&](std::size_t i) { return std::to_integer<unsigned>(bytes[i]); };
  // 08 0007 0004 length
  REQUIRE(bytes.size() > 9);
  CHECK(load_be<std::uint32_t>(bytes.data() + 5) == bytes.size() - 9);
  CHECK(at(9) == 8);
  CHECK(at(11) == 4);  // LISTEN
  CHECK(at(14) == 4);  // FULL
  CHECK(load_be<std::uint32_t>(bytes.data() + bytes.size() - 9) == ping_in_package);
  CHECK(at(bytes.size() - 5) == 8);
  CHECK(at(bytes.size() - 3) == 5);  // RUN
}
