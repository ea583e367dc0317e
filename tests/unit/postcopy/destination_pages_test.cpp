// SPDX-License-Identifier: Apache-2.0
#include "postcopy/destination_pages.hpp"
#include "postcopy/host_page_assembler.hpp"
#include "protocol/stream/layout.hpp"
#include "tests/unit/catch.hpp"

#include <cstring>
#include <thread>
#include <vector>

using namespace migrationd;
using namespace migrationd::postcopy;
using namespace std::chrono_literals;

namespace {

const std::vector<BlockShape> shapes{{"ram", 64, 1}, {"huge", 16, 4}};

std::vector<std::byte> page_of(int value) { return std::vector(stream::page_bytes, std::byte(value)); }

}  // namespace

TEST_CASE("DestinationPages.asks_for_each_page_once") {
  DestinationPages pages(shapes);
  CHECK(pages.need({0, 3}) == PageNeed::ask);
  CHECK(pages.need({0, 3}) == PageNeed::asked);
  CHECK(pages.outstanding() == 1);
  CHECK(pages.note_received(0, 3, 1) == 1);
  CHECK(pages.need({0, 3}) == PageNeed::received);
  CHECK(pages.outstanding() == 0);
  CHECK(pages.note_received(0, 3, 1) == 0);
}

TEST_CASE("DestinationPages.keeps_a_huge_page_outstanding_until_all_of_it_came") {
  DestinationPages pages(shapes);
  CHECK(pages.host_page(1, 6) == HostPage{1, 4});
  CHECK(pages.need({1, 4}) == PageNeed::ask);
  CHECK(pages.note_received(1, 4, 3) == 3);
  CHECK(pages.outstanding() == 1);
  CHECK(pages.need({1, 4}) == PageNeed::asked);
  CHECK(pages.note_received(1, 7, 1) == 1);
  CHECK(pages.outstanding() == 0);
}

TEST_CASE("DestinationPages.leaves_zeros_that_nobody_waits_for_as_holes") {
  DestinationPages pages(shapes);
  CHECK(pages.arrives(0, 1, 1, true) == Arrival::noted);
  CHECK(pages.need({0, 1}) == PageNeed::received);
  CHECK(pages.arrives(0, 1, 1, true) == Arrival::repeated);
  CHECK(pages.need({0, 2}) == PageNeed::ask);
  CHECK(pages.arrives(0, 2, 1, true) == Arrival::place);
  CHECK(pages.arrives(0, 3, 1, false) == Arrival::place);
  // Placed by parts, where nobody runs: what is asked for is the whole.
  CHECK(pages.need({1, 0}) == PageNeed::ask);
  CHECK(pages.arrives(1, 2, 1, true) == Arrival::place);
}

TEST_CASE("DestinationPages.forgets_parts_of_host_pages_at_a_break") {
  DestinationPages pages(shapes);
  pages.note_received(1, 0, 4);
  pages.note_received(1, 4, 3);
  pages.note_received(0, 5, 1);
  CHECK(pages.need({1, 4}) == PageNeed::ask);
  pages.forget_partial();
  CHECK(pages.missing() == 64 + 16 - 5);
  const std::vector<HostPage> left{{1, 4}};
  CHECK(pages.outstanding_pages() == left);
  const Bytes bitmap = pages.received_bitmap(1);
  REQUIRE(bitmap.size() == 8);
  CHECK(bitmap[0] == std::byte{0x0f});
  CHECK(pages.received_bitmap(0)[0] == std::byte{0x20});
}

TEST_CASE("DestinationPages.drops_what_a_discard_takes_away") {
  DestinationPages pages(shapes);
  pages.note_received(0, 0, 64);
  pages.note_dropped(0, 10, 4);
  CHECK(pages.need({0, 9}) == PageNeed::received);
  CHECK(pages.need({0, 10}) == PageNeed::ask);
}

TEST_CASE("DestinationPages.finds_what_nobody_asked_for") {
  DestinationPages pages(shapes);
  pages.note_received(0, 0, 63);
  CHECK(pages.next_unasked({0, 0}) == HostPage{0, 63});
  pages.need({0, 63});
  CHECK(pages.next_unasked({0, 0}) == HostPage{1, 0});
  pages.note_received(1, 0, 9);
  CHECK(pages.next_unasked({0, 0}) == HostPage{1, 8});
  pages.note_received(1, 8, 8);
  CHECK_FALSE(pages.next_unasked({0, 0}).has_value());
}

TEST_CASE("DestinationPages.are_shared_by_threads_that_fault_and_receive") {
  const std::vector<BlockShape> large{{"ram", 4096, 1}};
  DestinationPages pages(large);
  pages.start_blocktime(2);
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&pages, i] {
      for (std::uint64_t page = 0; page < 4096; ++page) pages.need({0, page}, i + 1);
    });
    threads.emplace_back([&pages, i] {
      for (std::uint64_t page = 0; page < 4096; page += 2) {
        const std::uint64_t mine = page + static_cast<unsigned>(i);
        if (pages.arrives(0, mine, 1, mine % 3 == 0) == Arrival::place) pages.note_received(0, mine, 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(pages.outstanding() == 0);
  CHECK(pages.missing() == 0);
}

// --- blocktime
// -------------------------------------------------------------------------------------------------------------

TEST_CASE("Blocktime.sums_per_vcpu_and_the_time_when_all_wait") {
  Blocktime time(2);
  const auto start = Blocktime::Clock::now();
  time.fault(0, 1, 100, start);
  time.fault(0, 2, 101, start + 10ms);
  time.placed(0, 1, start + 30ms);  // both waited for 20 ms
  time.placed(0, 2, start + 50ms);
  time.placed(0, 2, start + 60ms);
  const auto report = time.report();
  CHECK(report.all_ms == 20);
  CHECK(report.vcpu_ms == std::vector<std::uint64_t>{30, 40});
  CHECK(report.faults == 2);
  CHECK(report.latency_sum_us == 70000);
}

TEST_CASE("Blocktime.counts_latencies_in_powers_of_two") {
  Blocktime time(1);
  const auto start = Blocktime::Clock::now();
  for (const auto wait : {0us, 1us, 2us, 3us, 1000us, 30000000us}) {
    time.fault(0, 0, 7, start);
    time.placed(0, 0, start + wait);
  }
  const auto buckets = time.report().latencies;
  REQUIRE(buckets.size() == Blocktime::buckets);
  CHECK(buckets[0] == 2);
  CHECK(buckets[1] == 2);
  CHECK(buckets[9] == 1);
  CHECK(buckets[Blocktime::buckets - 1] == 1);
}

TEST_CASE("Blocktime.takes_helpers_for_no_vcpus") {
  Blocktime time(1);
  const auto start = Blocktime::Clock::now();
  time.fault(0, 0, 7, start);
  time.fault(0, 0, 8, start);
  time.placed(0, 0, start + 5ms);
  CHECK(time.report().vcpu_ms == std::vector<std::uint64_t>{5});
  CHECK(time.report().faults == 2);
  CHECK(time.report().all_ms == 5);
}

// --- host pages
// --------------------------------------------------------------------------------------------------------------

TEST_CASE("HostPageAssembler.passes_small_pages_through") {
  HostPageAssembler assembler(shapes);
  const auto bytes = page_of(1);
  auto whole = assembler.take(0, 5, bytes.data());
  REQUIRE(whole.has_value());
  REQUIRE(whole->has_value());
  CHECK((*whole)->bytes == bytes.data());
  CHECK((*whole)->page == 5);
}

TEST_CASE("HostPageAssembler.completes_a_huge_page_in_any_order_with_zeros_between") {
  HostPageAssembler assembler(shapes);
  const auto three = page_of(3);
  const auto one = page_of(1);
  CHECK_FALSE((*assembler.take(1, 6, nullptr)).has_value());
  CHECK_FALSE((*assembler.take(1, 7, three.data())).has_value());
  CHECK_FALSE((*assembler.take(1, 4, nullptr)).has_value());
  CHECK(assembler.partial());
  auto whole = assembler.take(1, 5, one.data());
  REQUIRE(whole.has_value());
  REQUIRE(whole->has_value());
  CHECK_FALSE(assembler.partial());
  CHECK((*whole)->page == 4);
  const std::byte* bytes = (*whole)->bytes;
  for (const auto& [page, value] : std::vector<std::pair<int, int>>{{0, 0}, {1, 1}, {2, 0}, {3, 3}}) {
    const auto expected = page_of(value);
    CHECK(std::memcmp(bytes + static_cast<std::size_t>(page) * stream::page_bytes, expected.data(), expected.size()) ==
          0);
  }
  // The buffer is used again: nothing of the last page is left in it.
  for (std::uint64_t page = 8; page < 11; ++page) CHECK_FALSE((*assembler.take(1, page, nullptr)).has_value());
  CHECK((*assembler.take(1, 11, nullptr))->bytes == nullptr);
}

TEST_CASE("HostPageAssembler.refuses_another_page_before_the_first_is_whole") {
  HostPageAssembler assembler(shapes);
  REQUIRE(assembler.take(1, 0, nullptr).has_value());
  CHECK_FALSE(assembler.take(1, 4, nullptr).has_value());
  CHECK_FALSE(assembler.take(0, 0, nullptr).has_value());
  CHECK_FALSE(assembler.take(1, 0, nullptr).has_value());
  CHECK(assembler.take(1, 1, nullptr).has_value());
}
