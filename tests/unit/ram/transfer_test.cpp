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
#include "tests/unit/sampled.hpp"

#include <algorithm>
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
  transports::BufferedReader reader{channel, std::size_t{128} << 10};  // room for guesses of 31 pages
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
  void finish() { REQUIRE(store->finish().has_value()); }
  void send_pass(PageScanner& scanner) {
    REQUIRE(bool(run_whole_pass(scanner, sink, *stop)));
    end_body_and_read();
  }
};

enum class Old : std::uint8_t { none, everywhere, in_pieces };

// What an earlier attempt may have left at the destination: noise, everywhere or here and there.
void leave_noise(RamMap& map, Old old) {
  if (old == Old::none) return;
  std::mt19937 random{7};
  for (std::size_t index = 0; index < map.size(); ++index) {
    const std::size_t pages = map.at(index).pages();
    for (std::size_t page = 0; page < pages;) {
      const std::size_t run = old == Old::everywhere ? pages : std::min<std::size_t>(pages - page, random() % 90 + 1);
      std::memset(map.at(index).engine() + page * page_size, static_cast<int>(random() % 255 + 1), run * page_size);
      page += run + random() % 40;
    }
  }
}

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
  const auto old = GENERATE(Old::none, Old::everywhere, Old::in_pieces);
  const auto burst = GENERATE(5000, 200000);
  static Combinations combinations(5);
  if (combinations.pass_over()) return;
  RamMap from = map_of({4000, 700, 1});
  RamMap to = map_of({4000, 700, 1});
  leave_noise(to, old);
  auto views = views_of(from);
  LocalSpace space{std::span<const Mapping>(views)};
  auto log = make_dirty_log(from, space, kind);
  if (!log) {
    WARN("skipped: " << log.error().text());
    return;
  }
  Writer writer{views};
  writer.write_some(300);
  // Runs of full pages, long enough to be guessed; the guest's zeros and holes make guesses wrong in the middle.
  std::memset(from.at(0).engine() + 1000 * page_size, 0x11, 900 * page_size);
  std::memset(from.at(1).engine() + 100 * page_size, 0x22, 600 * page_size);
  Transfer transfer(from, to, skip_holes, burst);
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
  transfer.finish();
  CHECK(equal(from, to));
}

TEST_CASE("Transfer.any_mixture_of_pages_zeros_and_holes_replaces_any_old_memory") {
  const unsigned seed = GENERATE(range(1U, 13U));
  const bool skip_holes = seed % 2 == 0;
  constexpr std::size_t largest_reads[] = {1, 7, 4100, 4104, 4112, 65536, ~std::size_t{0}};
  const std::size_t largest_read = largest_reads[seed % 7];
  const std::size_t scale = largest_read == 1 ? 20 : 1;  // a read per byte takes minutes under ThreadSanitizer
  std::mt19937 random{seed};
  RamMap from = map_of({2000 / scale, 300 / scale});
  RamMap to = map_of({2000 / scale, 300 / scale});
  leave_noise(to, seed % 3 == 0 ? Old::in_pieces : Old::everywhere);
  for (std::size_t index = 0; index < from.size(); ++index) {
    std::byte* const memory = from.at(index).engine();
    for (std::size_t page = 0; page < from.at(index).pages();) {
      const std::size_t run = std::min<std::size_t>(from.at(index).pages() - page, random() % (seed * 20) + 1);
      const unsigned kind = random() % 4;  // 0: hole, 1: zeros that are allocated, else data that tells pages apart
      for (std::size_t i = page; i < page + run && kind != 0; ++i) {
        std::memset(memory + i * page_size, 0, page_size);
        if (kind != 1) std::memcpy(memory + i * page_size + random() % 500 * 8, &i, sizeof i);
        if (kind != 1) memory[i * page_size + page_size - 1] = std::byte{0x5a};
      }
      page += run;
    }
  }
  Transfer transfer(from, to, skip_holes, largest_read);
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner->begin_first_pass().has_value());
  PartBounds small;
  small.bytes = 300000;
  for (auto end = PassEnd::bound; end == PassEnd::bound;) {
    end = run_pass(*scanner, transfer.sink, *transfer.stop, small).value();
    transfer.end_body_and_read();
  }
  transfer.finish();
  CHECK(equal(from, to));
  CHECK(transfer.received.normal_pages.get() == transfer.sent.normal_pages.get());
  CHECK(transfer.received.zero_pages.get() == transfer.sent.zero_pages.get());
  CHECK(transfer.reader.position() == transfer.channel.bytes.size());
}

TEST_CASE("Transfer.what_was_read_in_the_wrong_place_is_given_back_to_its_last_byte") {
  RamMap from = map_of({64});
  RamMap to = map_of({64});
  leave_noise(to, Old::everywhere);
  std::memset(from.at(0).engine(), 0x33, 40 * page_size);
  Transfer transfer(from, to, false);
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner->begin_first_pass().has_value());
  REQUIRE(bool(run_whole_pass(*scanner, transfer.sink, *transfer.stop)));
  REQUIRE(transfer.sink.end_body().has_value());
  REQUIRE(transfer.sink.finish_pass().has_value());
  Bytes tail(20000);
  for (std::size_t i = 0; i < tail.size(); ++i) tail[i] = static_cast<std::byte>(i * 7 + i / 256);
  transfer.channel.bytes.insert(transfer.channel.bytes.end(), tail.begin(), tail.end());
  // The first page comes alone, so that all that follows is read by a guess.
  REQUIRE(transfer.reader.peek(1).has_value());
  REQUIRE(bool(transfer.body_reader.read_body()));
  Bytes rest(tail.size());
  REQUIRE(bool(transfer.reader.read_exact(rest)));
  CHECK(rest == tail);
  CHECK(transfer.reader.at_end().value());
  transfer.finish();
  CHECK(equal(from, to));
}

TEST_CASE("Transfer.a_guess_is_taken_where_memory_is_warm_and_not_where_it_is_a_hole") {
  const bool warm = GENERATE(true, false);
  RamMap from = map_of({2000});
  RamMap to = map_of({2000});
  leave_noise(to, warm ? Old::everywhere : Old::none);
  std::memset(from.at(0).engine(), 0x44, 2000 * page_size);
  Transfer transfer(from, to, false, 150000);
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner->begin_first_pass().has_value());
  transfer.send_pass(*scanner);
  transfer.finish();
  CHECK(equal(from, to));
  CHECK(transfer.channel.read_in_pieces == warm);
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

TEST_CASE("Transfer.memory_is_equal_when_pages_go_as_deltas") {
  // Typed: from a name GENERATE would keep a reference.
  const auto cache = GENERATE(as<std::uint64_t>{}, page_size, 256 * page_size, std::uint64_t{1} << 30);
  RamMap from = map_of({2000, 300, 1});
  RamMap to = map_of({2000, 300, 1});
  auto views = views_of(from);
  LocalSpace space{std::span<const Mapping>(views)};
  auto log = make_dirty_log(from, space, DirtyLogKind::automatic);
  REQUIRE(log.has_value());
  Writer writer{views};
  writer.write_some(3000);
  Transfer transfer(from, to, false);
  auto scanner = PageScanner::of(from);
  REQUIRE((*log)->start().has_value());
  std::atomic<bool> end{false};
  std::atomic<int> rounds{0};
  std::thread guest([&] {
    while (!end) {
      writer.write_some(20);
      ++rounds;
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  });
  REQUIRE(scanner->begin_first_pass().has_value());
  transfer.send_pass(*scanner);
  XbzrleCounters counters;
  XbzrleSender xbzrle(from, counters);
  transfer.sink.compress_by(&xbzrle);
  for (int pass = 0; pass < 30; ++pass) {
    // However busy the machine: a pass finds pages that changed.
    for (const int before = rounds; rounds < before + 3;) std::this_thread::yield();
    // Memory goes back to the kernel, too: what was sent before is a hole then.
    if (pass % 8 == 5) REQUIRE(from.at(0).punch(pass * 10 * page_size, 40 * page_size).has_value());
    REQUIRE(xbzrle.begin_pass(pass == 20 ? cache * 2 : cache).has_value());
    REQUIRE(scanner->begin_pass(log->get()).has_value());
    transfer.send_pass(*scanner);
  }
  end = true;
  guest.join();
  REQUIRE(xbzrle.begin_pass(cache).has_value());
  REQUIRE(scanner->begin_pass(log->get()).has_value());
  transfer.send_pass(*scanner);
  (*log)->stop();
  transfer.finish();
  CHECK(counters.misses.get() > 0);
  if (cache > page_size) CHECK(counters.pages.get() > 0);
  CHECK(equal(from, to));
}

TEST_CASE("XbzrleSender.sends_what_changed_and_keeps_what_was_sent") {
  RamMap map = map_of({8});
  XbzrleCounters counters;
  XbzrleSender sender(map, counters);
  using Form = XbzrleSender::Form;
  std::byte* const page = map.at(0).engine() + 3 * page_size;
  page[100] = std::byte{1};
  CHECK(sender.choose(0, 3, page).form == Form::page);  // no cache yet
  REQUIRE(sender.begin_pass(4 * page_size).has_value());
  const auto first = sender.choose(0, 3, page);
  REQUIRE(first.form == Form::copy);
  page[100] = std::byte{2};
  CHECK(first.bytes[100] == std::byte{1});              // a copy, whatever the guest does meanwhile
  CHECK(sender.choose(0, 7, page).form == Form::page);  // the same place, and taken in this pass
  REQUIRE(sender.begin_pass(4 * page_size).has_value());
  const auto second = sender.choose(0, 3, page);
  REQUIRE(second.form == Form::delta);
  CHECK(second.bytes.size() == 3);  // skip 100, one byte: 2
  CHECK(sender.choose(0, 3, page).form == Form::unchanged);
  sender.sent_zeros(0, 0, 8);
  const auto from_zero = sender.choose(0, 3, page);
  REQUIRE(from_zero.form == Form::delta);
  CHECK(from_zero.bytes.back() == std::byte{2});
  std::memset(page, 0x77, page_size);
  CHECK(sender.choose(0, 3, page).form == Form::copy);
  CHECK(counters.overflows.get() == 1);
  // Two passes later the place may be had by another page.
  REQUIRE(sender.begin_pass(4 * page_size).has_value());
  REQUIRE(sender.begin_pass(4 * page_size).has_value());
  CHECK(sender.choose(0, 7, page).form == Form::copy);
  CHECK(sender.choose(0, 3, page).form == Form::page);
  CHECK(counters.pages.get() == 2);
  CHECK(counters.misses.get() == 4);
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
  CHECK(to.at(0).allocated_bytes().value() == 64 * page_size);
  transfer.finish();
  CHECK(to.at(0).allocated_bytes().value() == page_size);
  CHECK(equal(from, to));
}

TEST_CASE("StorePlain.a_delta_for_a_stale_page_applies_to_zeros") {
  RamMap to = map_of({4});
  leave_noise(to, Old::everywhere);
  const auto store = StorePlain::make(to).value();
  const auto page = store->page_to_change(to.prove(0, page_size, page_size).value()).value();
  CHECK(std::all_of(page.begin(), page.end(), [](std::byte byte) { return byte == std::byte{0}; }));
  page[1] = std::byte{9};
  REQUIRE(store->finish().has_value());
  CHECK(to.at(0).engine()[page_size + 1] == std::byte{9});
  CHECK(to.at(0).allocated_bytes().value() == page_size);
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
  CHECK(std::chrono::steady_clock::now() - begin < std::chrono::seconds(40));  // at that rate it would take 80
  stopper.join();
  REQUIRE_FALSE(bool(ended));
  CHECK(ended.error().is_cancelled());
}
