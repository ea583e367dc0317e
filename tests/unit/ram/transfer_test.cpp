// SPDX-License-Identifier: Apache-2.0
// The test that matters: whatever is dirtied and whenever, the destination's memory equals the source's at hand-over.
#include "protocol/stream/ram_setup.hpp"
#include "ram/dirty_log_factory.hpp"
#include "ram/page_scanner.hpp"
#include "ram/ram_section_reader.hpp"
#include "ram/run_pass.hpp"
#include "ram/sink_stream.hpp"
#include "ram/store_plain.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/ram/memory_channel.hpp"

#include <atomic>
#include <cstring>
#include <random>
#include <thread>

using namespace migrationd;
using namespace migrationd::ram;
using migrationd::ram::test::MemoryChannel;

namespace {

RamMap map_of(std::initializer_list<std::size_t> pages) {
  RamMap map;
  for (const std::size_t count : pages) {
    auto block = RamBlock::create("block" + std::to_string(map.size()), count * page_size, page_size);
    REQUIRE(block.has_value());
    REQUIRE(map.add(std::move(*block)).has_value());
  }
  return map;
}

std::vector<Mapping> views_of(const RamMap& map) {
  std::vector<Mapping> views;
  for (std::size_t index = 0; index < map.size(); ++index) {
    auto view = Mapping::of_fd(map.at(index).fd(), map.at(index).length());
    REQUIRE(view.has_value());
    views.push_back(std::move(*view));
  }
  return views;
}

bool equal(const RamMap& a, const RamMap& b) {
  for (std::size_t index = 0; index < a.size(); ++index)
    if (std::memcmp(a.at(index).engine(), b.at(index).engine(), a.at(index).length()) != 0) return false;
  return true;
}

// Source and destination over one channel in memory.
struct Transfer {
  RamMap& from;
  RamMap& to;
  MemoryChannel channel;
  transports::BufferedWriter writer{channel};
  transports::BufferedReader reader{channel, 32768};
  std::unique_ptr<StopSource> stop = StopSource::make().value();
  SendCounters sent;
  ReceiveCounters received;
  SinkStream sink;
  std::unique_ptr<StorePlain> store;
  RamSectionReader body_reader;

  Transfer(RamMap& source, RamMap& target, bool skip_holes, std::size_t largest_read = ~std::size_t{0})
      : from(source),
        to(target),
        channel(largest_read),
        sink(from, writer, *stop, sent, {skip_holes}),
        store(StorePlain::make(to).value()),
        body_reader(reader, to, *store, received) {}

  void end_body_and_read() {
    REQUIRE(sink.end_body().has_value());
    REQUIRE(sink.finish_pass().has_value());
    const auto read = body_reader.read_body();
    if (!read) FAIL(read.error().text());
  }
  void send_pass(PageScanner& scanner) {
    REQUIRE(bool(run_whole_pass(scanner, sink, *stop)));
    end_body_and_read();
  }
};

struct Writer {
  std::vector<Mapping>& views;
  std::mt19937 random{42};
  std::vector<std::byte> noise = std::vector<std::byte>(page_size);

  void write_some(int count) {
    for (int i = 0; i < count; ++i) {
      Mapping& view = views[random() % views.size()];
      std::byte* const page = view.data() + random() % (view.size() / page_size) * page_size;
      switch (random() % 4) {
        case 0:
          std::memset(page, 0, page_size);
          break;
        case 1:
          page[random() % page_size] = static_cast<std::byte>(random());
          break;
        default:
          std::memset(page + random() % 2048, static_cast<int>(random() % 255 + 1), 2048);
      }
    }
  }
};

}  // namespace

TEST_CASE("Transfer.memory_is_equal_at_hand_over_whatever_a_racing_guest_writes") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  const bool skip_holes = GENERATE(false, true);
  RamMap from = map_of({4000, 700, 1});
  RamMap to = map_of({4000, 700, 1});
  auto views = views_of(from);
  auto log = make_dirty_log(from, views, kind);
  if (!log) {
    WARN("skipped: " << log.error().text());
    return;
  }
  Writer writer{views};
  writer.write_some(300);
  Transfer transfer(from, to, skip_holes, 5000);
  auto scanner = PageScanner::of(from);
  REQUIRE((*log)->start().has_value());
  std::atomic<bool> end{false};
  std::thread guest([&] {
    while (!end) {
      writer.write_some(20);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  });
  REQUIRE(scanner->begin_first_pass().has_value());
  transfer.send_pass(*scanner);
  for (int pass = 0; pass < 8; ++pass) {
    REQUIRE(scanner->begin_pass(log->get()).has_value());
    transfer.send_pass(*scanner);
  }
  end = true;
  guest.join();
  REQUIRE(scanner->begin_pass(log->get()).has_value());
  transfer.send_pass(*scanner);
  CHECK(scanner->remaining_pages() == 0);
  (*log)->stop();
  CHECK(equal(from, to));
}

TEST_CASE("Transfer.a_first_pass_cut_into_small_parts_and_short_arrives_whole") {
  RamMap from = map_of({3000});
  RamMap to = map_of({3000});
  auto views = views_of(from);
  Writer writer{views};
  writer.write_some(2000);
  Transfer transfer(from, to, true);
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner->begin_first_pass().has_value());
  PartBounds small;
  small.bytes = 1;
  for (int part = 0; part < 2; ++part) {
    CHECK(run_pass(*scanner, transfer.sink, *transfer.stop, small).value() == PassEnd::bound);
    transfer.end_body_and_read();
  }
  REQUIRE(scanner->begin_pass(nullptr).has_value());
  transfer.send_pass(*scanner);
  CHECK(equal(from, to));
}

TEST_CASE("Transfer.a_sparse_machine_stays_sparse_on_both_sides") {
  const bool skip_holes = GENERATE(false, true);
  RamMap from = map_of({1 << 20});
  RamMap to = map_of({1 << 20});
  for (std::size_t page = 0; page < 1000; page += 10) from.at(0).engine()[page * 4096 * 7] = std::byte{9};
  const std::uint64_t allocated = from.at(0).allocated_bytes().value();
  Transfer transfer(from, to, skip_holes);
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner->begin_first_pass().has_value());
  transfer.send_pass(*scanner);
  CHECK(from.at(0).allocated_bytes().value() == allocated);
  CHECK(to.at(0).allocated_bytes().value() == allocated);
  CHECK(transfer.sent.normal_pages.get() == 100);
  CHECK((skip_holes ? transfer.sent.skipped_pages : transfer.sent.zero_pages).get() == (1 << 20) - 100);
  CHECK(transfer.sent.transferred.get() == transfer.channel.bytes.size());
  CHECK(transfer.store->pages_never_received(0) == (skip_holes ? (1 << 20) - 100 : 0));
  CHECK(to.at(0).engine()[10 * 4096 * 7] == std::byte{9});
}

TEST_CASE("Transfer.what_the_destination_held_before_is_gone") {
  RamMap from = map_of({64});
  RamMap to = map_of({64});
  std::memset(to.at(0).engine(), 0x55, 64 * page_size);
  from.at(0).engine()[5 * page_size] = std::byte{1};
  Transfer transfer(from, to, true);
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner->begin_first_pass().has_value());
  transfer.send_pass(*scanner);
  CHECK(equal(from, to));
}

TEST_CASE("SinkStream.writes_the_records_of_the_format") {
  RamMap from = map_of({4, 2});
  RamMap to = map_of({4, 2});
  from.at(0).engine()[1 * page_size] = std::byte{0xab};
  from.at(1).engine()[0] = std::byte{0xcd};
  Transfer transfer(from, to, false);
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner->begin_first_pass().has_value());
  REQUIRE(bool(run_whole_pass(*scanner, transfer.sink, *transfer.stop)));
  REQUIRE(transfer.sink.end_body().has_value());
  REQUIRE(transfer.sink.finish_pass().has_value());
  ByteWriter expected;
  Bytes page(page_size);
  expected.u64(0x0002).str8("block0").u8(0);
  page[0] = std::byte{0xab};
  expected.u64(0x1028).bytes(page);
  expected.u64(0x2022).u8(0).u64(0x3022).u8(0);
  page[0] = std::byte{0xcd};
  expected.u64(0x0008).str8("block1").bytes(page);
  expected.u64(0x1022).u8(0);
  expected.u64(0x0010);
  CHECK(transfer.channel.bytes == std::move(expected).take());
}

TEST_CASE("SinkStream.is_ended_by_the_stop_while_it_waits_for_its_limit") {
  RamMap from = map_of({2048});
  RamMap to = map_of({2048});
  std::memset(from.at(0).engine(), 1, 2048 * page_size);
  Transfer transfer(from, to, false);
  const std::atomic<std::uint64_t> limit{100000};
  RateLimiter limiter(limit);
  transfer.sink.limit_by(&limiter);
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner->begin_first_pass().has_value());
  std::thread stopper([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    transfer.stop->request();
  });
  const auto begin = std::chrono::steady_clock::now();
  const auto ended = run_whole_pass(*scanner, transfer.sink, *transfer.stop);
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(2));
  stopper.join();
  REQUIRE_FALSE(bool(ended));
  CHECK(ended.error().is_cancelled());
}
