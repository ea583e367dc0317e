// SPDX-License-Identifier: Apache-2.0
#include "postcopy/unsent_pages.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::postcopy;
using ram::PageRun;

namespace {

ram::DirtyBitmaps all_dirty(std::initializer_list<std::size_t> sizes) {
  ram::DirtyBitmaps bitmaps;
  for (const std::size_t pages : sizes) bitmaps.emplace_back(pages).set_all();
  return bitmaps;
}

// What the background sends, in order, `most` pages at a time.
std::vector<PageRange> background(UnsentPages& pages, std::uint64_t most) {
  std::vector<PageRange> sent;
  while (const auto range = pages.next(most)) {
    const auto run = pages.claim(*range);
    REQUIRE(run);
    sent.push_back({range->block, *run});
  }
  return sent;
}

}  // namespace

TEST_CASE("UnsentPages.background_sends_every_page_once_in_order") {
  UnsentPages pages(all_dirty({10, 3}), {1, 1});
  CHECK(pages.due_pages() == 13);
  CHECK(background(pages, 4) == std::vector<PageRange>{{0, {0, 4}}, {0, {4, 4}}, {0, {8, 2}}, {1, {0, 3}}});
  CHECK(pages.due_pages() == 0);
  CHECK_FALSE(pages.claim_requested(0, {5, 1}));
}

TEST_CASE("UnsentPages.of_a_machine_of_which_nothing_was_sent_are_all") {
  const std::vector<BlockShape> blocks{{"small", 70, 1}, {"huge", 1024, 512}};
  UnsentPages pages(blocks);
  CHECK(pages.due_pages() == 1094);
  CHECK(pages.claim_requested(0, {69, 1}) == PageRun{69, 1});
  CHECK(pages.claim_requested(1, {600, 1}) == PageRun{512, 512});
  CHECK(pages.due_pages() == 581);
  CHECK(background(pages, 1000) == std::vector<PageRange>{{0, {0, 69}}, {1, {0, 512}}});
}

TEST_CASE("UnsentPages.a_request_is_claimed_once_and_its_neighbours_come_next") {
  UnsentPages pages(all_dirty({100, 100}), {1, 1});
  CHECK(pages.claim_requested(1, {50, 1}) == PageRun{50, 1});
  CHECK_FALSE(pages.claim_requested(1, {50, 1}));
  CHECK(pages.next(8) == PageRange{1, {51, 8}});
  CHECK(pages.claim({1, {51, 8}}) == PageRun{51, 8});
  // Around the memory: to the end, then from the beginning, and the one that was asked for is left out.
  const auto rest = background(pages, 1000);
  CHECK(rest == std::vector<PageRange>{{1, {59, 41}}, {0, {0, 100}}, {1, {0, 50}}});
}

TEST_CASE("UnsentPages.what_a_request_took_meanwhile_is_not_claimed_again") {
  UnsentPages pages(all_dirty({16}), {1});
  const auto range = pages.next(8);
  REQUIRE(range == PageRange{0, {0, 8}});
  CHECK(pages.claim_requested(0, {3, 1}) == PageRun{3, 1});
  CHECK(pages.claim(*range) == PageRun{0, 3});
  CHECK(pages.claim(*range) == PageRun{4, 4});
  CHECK_FALSE(pages.claim(*range));
}

TEST_CASE("UnsentPages.a_large_request_is_claimed_piece_by_piece") {
  UnsentPages pages(all_dirty({16}), {1});
  CHECK(pages.claim_requested(0, {4, 2}) == PageRun{4, 2});
  CHECK(pages.claim_requested(0, {0, 16}) == PageRun{0, 4});
  CHECK(pages.claim_requested(0, {0, 16}) == PageRun{6, 10});
  CHECK_FALSE(pages.claim_requested(0, {0, 16}));
}

TEST_CASE("UnsentPages.dirty_bits_are_rounded_to_host_pages") {
  ram::DirtyBitmaps dirty;
  dirty.emplace_back(2048);
  dirty[0].set(700);
  UnsentPages pages(std::move(dirty), {512});
  CHECK(pages.due_pages() == 512);
  CHECK(pages.next(32) == PageRange{0, {512, 512}});
  CHECK_FALSE(pages.claim_requested(0, {0, 1}));
  CHECK(pages.claim_requested(0, {1023, 1}) == PageRun{512, 512});
  CHECK_FALSE(pages.next(32));
}

TEST_CASE("UnsentPages.skipped_pages_are_not_due_but_can_be_had") {
  UnsentPages pages(all_dirty({100}), {1});
  pages.skip({0, {0, 90}});
  CHECK(pages.due_pages() == 10);
  CHECK(background(pages, 100) == std::vector<PageRange>{{0, {90, 10}}});
  CHECK(pages.claim_requested(0, {5, 1}) == PageRun{5, 1});
  CHECK_FALSE(pages.claim_requested(0, {5, 1}));
}

TEST_CASE("UnsentPages.a_working_set_goes_first") {
  UnsentPages pages(all_dirty({100, 100}), {1, 1});
  // Past the end, of no block, empty, longer than it can be: dropped.
  pages.prefer(std::vector<PageRange>{
      {1, {10, 3}}, {0, {50, 2}}, {1, {100, 1}}, {7, {0, 1}}, {0, {7, 0}}, {0, {99, ~std::uint64_t{0}}}});
  CHECK(pages.claim_requested(1, {11, 1}) == PageRun{11, 1});
  std::vector<PageRange> first;
  for (int i = 0; i < 4; ++i) {
    const auto range = pages.next(64);
    REQUIRE(range);
    first.push_back({range->block, *pages.claim(*range)});
  }
  // Then behind what was asked for.
  CHECK(first == std::vector<PageRange>{{1, {10, 1}}, {1, {12, 1}}, {0, {50, 2}}, {1, {13, 64}}});
}

TEST_CASE("UnsentPages.preferred_ones_are_claimed_several_at_once_and_each_once") {
  UnsentPages pages(all_dirty({100, 64}), {1, 16});
  CHECK_FALSE(pages.any_preferred());
  const std::vector<PageRange> order{{0, {90, 3}}, {0, {5, 1}}, {1, {17, 1}}, {0, {5, 40}}};
  pages.prefer(order);
  REQUIRE(pages.claim_requested(0, {91, 1}));
  CHECK(pages.claim_preferred(3) == std::vector<PageRange>{{0, {90, 1}}, {0, {92, 1}}, {0, {5, 1}}});
  // A host page goes whole, also when it is more than was wanted, and alone then.
  CHECK(pages.claim_preferred(3) == std::vector<PageRange>{{1, {16, 16}}});
  CHECK(pages.claim_preferred(30) == std::vector<PageRange>{{0, {6, 30}}});
  CHECK(pages.any_preferred());
  CHECK(pages.claim_preferred(30) == std::vector<PageRange>{{0, {36, 9}}});
  CHECK(pages.claim_preferred(30).empty());
  CHECK_FALSE(pages.any_preferred());
  CHECK_FALSE(pages.claim_requested(1, {20, 1}));
  CHECK(pages.due_pages() == 164 - 3 - 1 - 16 - 39);
}

TEST_CASE("UnsentPages.sees_who_goes_through_the_memory_in_order") {
  UnsentPages pages(all_dirty({1000, 10}), {1, 1});
  REQUIRE(pages.claim_requested(0, {100, 1}));
  CHECK(pages.in_sequence(0, 101));
  CHECK_FALSE(pages.in_sequence(0, 99));
  CHECK_FALSE(pages.in_sequence(0, 400));
  CHECK_FALSE(pages.in_sequence(1, 5));
  // Behind a piece of the background too.
  const auto piece = pages.next(32);
  REQUIRE(piece == PageRange{0, {101, 32}});
  REQUIRE(pages.claim(*piece));
  CHECK(pages.in_sequence(0, 133));
}
