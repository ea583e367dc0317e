// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic_pattern.hpp"
#include "tests/unit/catch.hpp"

#include <array>
#include <set>

using namespace migrationd;
using namespace migrationd::synthetic;

namespace {
using Page = std::array<std::byte, ram::page_size>;

Page page_of(const PageIdentity& identity) {
  Page page{};
  write_page(page.data(), identity);
  return page;
}
}  // namespace

TEST_CASE("Pattern.every_byte_of_a_page_is_proved") {
  const PageIdentity identity{page_number(1, 42), 7, 99};
  Page page = page_of(identity);
  CHECK(page_is(page.data(), identity));
  for (std::size_t at = 0; at < page.size(); ++at) {
    page[at] ^= std::byte{1};
    if (page_is(page.data(), identity)) FAIL("byte " << at << " is not looked at");
    page[at] ^= std::byte{1};
  }
  CHECK(page_is(page.data(), identity));
}

TEST_CASE("Pattern.pages_of_other_place_generation_or_seed_differ_in_every_word_of_the_body") {
  const PageIdentity identity{5, 7, 99};
  const Page page = page_of(identity);
  for (const PageIdentity& other : {PageIdentity{6, 7, 99}, PageIdentity{5, 8, 99}, PageIdentity{5, 7, 100}}) {
    const Page second = page_of(other);
    std::size_t equal = 0;
    for (std::size_t at = 32; at < page.size(); at += 8) equal += std::equal(&page[at], &page[at] + 8, &second[at]);
    CHECK(equal == 0);
  }
}

TEST_CASE("Pattern.says_what_is_wrong_with_a_page") {
  const PageIdentity expected{page_number(0, 3), 5, 1};
  const Page zero{};
  CHECK(page_is_zero(zero.data()));
  CHECK(explain_page(zero.data(), expected) == "expected generation 5, found a zero page (lost)");
  CHECK(explain_page(page_of({page_number(0, 3), 4, 1}).data(), expected) ==
        "expected generation 5, found generation 4 (stale)");
  CHECK(explain_page(page_of({page_number(0, 3), 6, 1}).data(), expected) ==
        "expected generation 5, found generation 6 (too new)");
  CHECK(explain_page(page_of({page_number(1, 9), 5, 1}).data(), expected) ==
        "expected generation 5, found page 9 of block 1, generation 5 (misplaced)");
  CHECK(explain_page(page_of({page_number(0, 3), 5, 2}).data(), expected) ==
        "expected generation 5, found a page of a guest with seed 2");
  Page torn = page_of(expected);
  const Page older = page_of({page_number(0, 3), 4, 1});
  std::copy(older.begin() + 2048, older.end(), torn.begin() + 2048);
  CHECK(explain_page(torn.data(), expected) == "expected generation 5, found generation 5 torn at byte 2048");
  torn[0] = std::byte{0};
  CHECK(explain_page(torn.data(), expected) == "expected generation 5, found bytes that are no page of the guest");
}

TEST_CASE("WriteOrder.each_round_is_a_permutation_and_counts_agree_with_the_sequence") {
  for (const std::uint64_t pages : {1U, 2U, 3U, 7U, 64U, 100U, 1021U}) {
    WriteOrder order(pages, 12345);
    std::vector<std::uint64_t> written(pages, 0);
    for (std::uint64_t k = 0; k < pages * 9 + pages / 2; ++k) {
      const std::uint64_t index = order.at(k);
      REQUIRE(index < pages);
      ++written[index];
      // Every page has been written k / pages times, or once more.
      REQUIRE(written[index] == k / pages + 1);
      if (k % 37 != 0) continue;
      WriteOrder asked(pages, 12345);
      for (std::uint64_t i = 0; i < pages; ++i) REQUIRE(asked.times(i, k + 1) == written[i]);
    }
  }
}

TEST_CASE("WriteOrder.rounds_differ_and_leave_sequences") {
  WriteOrder order(1000, 1);
  std::set<std::uint64_t> distances;
  for (std::uint64_t round = 0; round < 8; ++round) {
    distances.insert((order.at(round * 1000 + 1) + 1000 - order.at(round * 1000)) % 1000);
  }
  CHECK(distances.count(1) == 1);
  CHECK(distances.count(999) == 1);
  CHECK(distances.size() >= 4);
}

TEST_CASE("WriteOrder.works_at_the_largest_size") {
  const std::uint64_t pages = std::uint64_t{1} << 32;
  WriteOrder order(pages, 3);
  for (std::uint64_t round = 0; round < 4; ++round) {
    const std::uint64_t k = round * pages + 0xdeadbeef;
    const std::uint64_t index = order.at(k);
    REQUIRE(index < pages);
    CHECK(order.times(index, k) == round);
    CHECK(order.times(index, k + 1) == round + 1);
  }
}

TEST_CASE("PagePlaces.spread_over_the_block_and_come_back") {
  for (const auto& [ram_pages, used] : std::vector<std::pair<std::uint64_t, std::uint64_t>>{
           {512 * 64, 512 * 4 + 5}, {512 * 64, 512 * 40}, {700, 700}, {700, 3}, {512 * 3, 512 * 3}, {100, 0}}) {
    GuestShape shape;
    shape.ram_pages = ram_pages;
    shape.working_pages = used;
    const PagePlaces places(shape);
    std::uint64_t found = 0;
    for (std::uint64_t logical = 0; logical < used; ++logical) {
      REQUIRE(places.physical(logical) < ram_pages);
      REQUIRE(places.logical(places.physical(logical)) == logical);
    }
    for (std::uint64_t physical = 0; physical < ram_pages; ++physical) found += places.logical(physical).has_value();
    CHECK(found == used);
  }
  GuestShape wide;
  wide.ram_pages = 512 * 64;
  wide.working_pages = 512 * 4;
  CHECK(PagePlaces(wide).physical(512) == 512 * 16);
}

TEST_CASE("Slices.cover_the_working_set_once") {
  for (const std::uint64_t pages : {64U, 65U, 100U, 127U}) {
    GuestShape shape;
    shape.working_pages = pages;
    shape.threads = 64;
    std::uint64_t next = 0;
    for (std::uint32_t i = 0; i < shape.threads; ++i) {
      CHECK(slice_of(shape, i).first == next);
      next += slice_of(shape, i).count;
    }
    CHECK(next == pages);
  }
}

TEST_CASE("Ledger.knows_touched_written_and_untouched_pages") {
  GuestShape shape;
  shape.ram_pages = 64;
  shape.working_pages = 10;
  shape.touched_pages = 4;
  shape.threads = 3;
  shape.seed = 5;
  const std::vector<std::uint64_t> writes{5, 0, 2};  // slices of 4, 3, 3 pages
  Ledger ledger(shape, writes);
  std::vector<std::optional<std::uint64_t>> wanted(64);
  for (std::size_t i = 0; i < 4; ++i) wanted[i] = 0;
  for (std::uint32_t thread = 0; thread < 3; ++thread) {
    const Slice slice = slice_of(shape, thread);
    WriteOrder order(slice.count, order_seed(shape, thread));
    for (std::uint64_t k = 0; k < writes[thread]; ++k) {
      auto& page = wanted[slice.first + order.at(k)];
      page = page.value_or(0) + 1;
    }
  }
  std::uint64_t with_data = 0;
  for (std::uint64_t page = 0; page < 64; ++page) {
    CHECK(ledger.generation(page) == wanted[page]);
    with_data += wanted[page].has_value();
  }
  CHECK(ledger.pages_with_data() == with_data);
}
