// SPDX-License-Identifier: Apache-2.0
#include "ram/ram_section_reader.hpp"
#include "ram/store_plain.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/ram/memory_channel.hpp"

#include <algorithm>

using namespace migrationd;
using namespace migrationd::ram;
using migrationd::ram::test::MemoryChannel;

namespace {

struct Destination {
  RamMap map;
  MemoryChannel channel;
  transports::BufferedReader reader{channel, 16384};
  ReceiveCounters counters;
  std::unique_ptr<StorePlain> store;
  std::unique_ptr<RamSectionReader> body;

  explicit Destination(std::size_t largest_read = ~std::size_t{0}) : channel(largest_read) {
    for (const auto& [name, pages] : {std::pair{"pc.ram", 16}, std::pair{"pc.bios", 2}})
      REQUIRE(map.add(RamBlock::create(name, pages * page_size, page_size).value()).has_value());
    store = StorePlain::make(map).value();
    body = std::make_unique<RamSectionReader>(reader, map, *store, counters);
  }
  Result<void> read(const ByteWriter& bytes) {
    channel.bytes.insert(channel.bytes.end(), bytes.view().begin(), bytes.view().end());
    return body->read_body();
  }
  std::string error_of(const ByteWriter& bytes) {
    const auto result = read(bytes);
    REQUIRE_FALSE(bool(result));
    return result.error().text();
  }
  int byte_at(std::size_t block, std::size_t offset) const {
    return std::to_integer<int>(map.at(block).engine()[offset]);
  }
};

Bytes page_of(int value) { return Bytes(page_size, static_cast<std::byte>(value)); }

}  // namespace

TEST_CASE("RamSectionReader.places_pages_and_remembers_the_block_across_sections") {
  Destination destination(GENERATE(1, 100, 4104, 1000000));
  ByteWriter first;
  first.u64(0x0008)
      .str8("pc.ram")
      .bytes(page_of(1))
      .u64(0x1028)
      .bytes(page_of(2))
      .u64(0x5028)
      .bytes(page_of(5))
      .u64(0x10);
  ByteWriter second;
  second.u64(0x2028)
      .bytes(page_of(3))
      .u64(0x1028)
      .bytes(page_of(9))
      .u64(0x1008)
      .str8("pc.bios")
      .bytes(page_of(7))
      .u64(0x10);
  REQUIRE(bool(destination.read(first)));
  REQUIRE(bool(destination.read(second)));
  CHECK(destination.byte_at(0, 0x0fff) == 1);
  CHECK(destination.byte_at(0, 0x1000) == 9);
  CHECK(destination.byte_at(0, 0x2fff) == 3);
  CHECK(destination.byte_at(0, 0x5000) == 5);
  CHECK(destination.byte_at(1, 0x1000) == 7);
  CHECK(destination.counters.normal_pages.get() == 6);
}

TEST_CASE("RamSectionReader.the_last_record_wins_also_between_pages_and_zeros") {
  Destination destination;
  ByteWriter body;
  body.u64(0x0008).str8("pc.ram").bytes(page_of(1)).u64(0x0022).u8(0).u64(0x1022).u8(0).u64(0x1028).bytes(page_of(4));
  body.u64(0x2028).bytes(page_of(6)).u64(0x2022).u8(0).u64(0x2028).bytes(page_of(8)).u64(0x10);
  REQUIRE(bool(destination.read(body)));
  CHECK(destination.byte_at(0, 0) == 0);
  CHECK(destination.byte_at(0, 0x1000) == 4);
  CHECK(destination.byte_at(0, 0x2000) == 8);
}

TEST_CASE("StorePlain.a_page_that_comes_again_and_again_holds_the_last_bytes") {
  Destination destination;
  const Mapping guest = Mapping::of_fd(destination.map.at(0).fd(), destination.map.at(0).length()).value();
  for (int value = 1; value <= 5; ++value) {
    ByteWriter body;
    body.u64(0x3008).str8("pc.ram").bytes(page_of(value));
    body.u64(0x4028).bytes(page_of(value + 100));
    if (value % 2 == 1) body.u64(0x5028).bytes(page_of(value + 50));
    body.u64(0x10);
    REQUIRE(bool(destination.read(body)));
    for (const int page : {3, 4}) {
      const auto expected = static_cast<std::byte>(page == 3 ? value : value + 100);
      CHECK(guest.data()[page * page_size] == expected);
      CHECK(guest.data()[(page + 1) * page_size - 1] == expected);
    }
  }
  CHECK(guest.data()[5 * page_size] == std::byte{55});
}

TEST_CASE("RamSectionReader.zeros_for_pages_never_stored_allocate_nothing") {
  Destination destination;
  ByteWriter body;
  body.u64(0x0002).str8("pc.ram").u8(0);
  for (std::uint64_t page = 1; page < 16; ++page) body.u64(page * page_size | 0x22).u8(0);
  body.u64(0x10);
  REQUIRE(bool(destination.read(body)));
  CHECK(destination.map.at(0).allocated_bytes().value() == 0);
  CHECK(destination.counters.zero_pages.get() == 16);
}

TEST_CASE("RamSectionReader.applies_delta_and_compressed_pages") {
  Destination destination;
  ByteWriter body;
  body.u64(0x0008).str8("pc.ram").bytes(page_of(1));
  body.u64(0x0060).u8(1).u16(4).u8(3).u8(2).u8(0xaa).u8(0xbb);
  const Bytes whole = page_of(0x77);
  const Bytes packed = stream::deflate_page(stream::PageView(whole.data(), page_size), 1);
  body.u64(0x3120).u32(static_cast<std::uint32_t>(packed.size())).bytes(packed).u64(0x10);
  REQUIRE(bool(destination.read(body)));
  CHECK(destination.byte_at(0, 2) == 1);
  CHECK(destination.byte_at(0, 3) == 0xaa);
  CHECK(destination.byte_at(0, 4) == 0xbb);
  CHECK(destination.byte_at(0, 5) == 1);
  CHECK(destination.byte_at(0, 0x3abc) == 0x77);
}

TEST_CASE("RamSectionReader.refuses_what_lies_outside_a_block") {
  ByteWriter past;
  past.u64(16 * page_size | 0x08).str8("pc.ram").bytes(page_of(1)).u64(0x10);
  CHECK(Destination().error_of(past) == "block 'pc.ram': offset 0x10000 is past the end (used 0x10000)");
  ByteWriter run;
  run.u64(15 * page_size | 0x02).str8("pc.ram").u8(0).u64(16 * page_size | 0x22).u8(0).u64(0x10);
  CHECK(Destination().error_of(run) == "block 'pc.ram': offset 0x10000 is past the end (used 0x10000)");
  ByteWriter high;
  high.u64(0xfffffffffffff000 | 0x02).str8("pc.ram").u8(0).u64(0x10);
  CHECK(Destination().error_of(high).find("past the end") != std::string::npos);
}

TEST_CASE("RamSectionReader.refuses_records_that_do_not_belong") {
  ByteWriter unknown;
  unknown.u64(0x08).str8("vga\x1b").bytes(page_of(1)).u64(0x10);
  CHECK(Destination().error_of(unknown) == "a page of block 'vga\\x1b', which was not listed");
  ByteWriter nothing_named;
  nothing_named.u64(0x22).u8(0).u64(0x10);
  CHECK(Destination().error_of(nothing_named).find("none was named") != std::string::npos);
  ByteWriter list;
  list.u64(0x1004);
  CHECK(Destination().error_of(list) == "a second block list");
  ByteWriter flush;
  flush.u64(0x200);
  CHECK(Destination().error_of(flush).find("multifd") != std::string::npos);
  ByteWriter hook;
  hook.u64(0x80);
  CHECK_FALSE(bool(Destination().read(hook)));
  ByteWriter cut;
  cut.u64(0x08).str8("pc.ram").u64(0);
  CHECK(Destination().error_of(cut).find("ends too early") != std::string::npos);
}

TEST_CASE("RamSetup.is_read") {
  Destination destination;
  ByteWriter bytes;
  bytes.u64(18 * page_size | 4).str8("pc.ram").u64(16 * page_size).str8("pc.bios").u64(2 * page_size).u64(0x10);
  destination.channel.bytes = std::move(bytes).take();
  auto list = read_ram_setup(destination.reader, {});
  REQUIRE(list.has_value());
  CHECK(list->size() == 2);
  REQUIRE(bool(destination.body->read_body()));
}
