// SPDX-License-Identifier: Apache-2.0
// Both dirty logs against real memory. Where this kernel or this user lacks one, its test says so and passes.
#include "ram/dirty_log_factory.hpp"
#include "tests/unit/catch.hpp"

#include <unistd.h>

#include <atomic>
#include <cstring>
#include <set>
#include <thread>

using namespace migrationd;
using namespace migrationd::ram;

namespace {

constexpr std::size_t mib = std::size_t{1} << 20;

struct Guest {
  RamMap map;
  std::vector<Mapping> views;
  std::unique_ptr<LocalSpace> here;
  DirtyBitmaps dirty;

  explicit Guest(std::initializer_list<std::size_t> lengths) {
    for (const std::size_t length : lengths) {
      auto block = RamBlock::create("block" + std::to_string(map.size()), length, page_size);
      REQUIRE(block.has_value());
      auto view = Mapping::of_fd((*block)->fd(), length);
      REQUIRE(view.has_value());
      views.push_back(std::move(*view));
      dirty.emplace_back(length / page_size);
      REQUIRE(map.add(std::move(*block)).has_value());
    }
  }
  GuestSpace& space() {
    here = std::make_unique<LocalSpace>(std::span<const Mapping>(views));
    return *here;
  }
  void write(std::size_t block, std::size_t page, int value = 1) {
    views[block].data()[page * page_size + 100] = static_cast<std::byte>(value);
  }
  // The pages of one sync, as block * 1000000 + page.
  std::set<std::size_t> sync(DirtyLog& log) {
    for (Bitmap& bitmap : dirty) bitmap.clear_all();
    REQUIRE(log.sync(dirty).has_value());
    std::set<std::size_t> pages;
    for (std::size_t block = 0; block < dirty.size(); ++block)
      for (std::size_t page = dirty[block].find_set(0); page < dirty[block].size();
           page = dirty[block].find_set(page + 1))
        pages.insert(block * 1000000 + page);
    return pages;
  }
};

std::unique_ptr<DirtyLog> log_of(Guest& guest, DirtyLogKind kind) {
  auto log = make_dirty_log(guest.map, guest.space(), kind);
  if (!log) {
    WARN("skipped: " << log.error().text());
    return nullptr;
  }
  return std::move(*log);
}

}  // namespace

TEST_CASE("DirtyLog.reports_writes_since_the_last_sync_and_nothing_else") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  Guest guest({8 * mib, 4 * mib});
  for (const std::size_t page : {0, 1, 600, 2047}) guest.write(0, page);
  guest.write(1, 5);
  const auto log = log_of(guest, kind);
  if (!log) return;
  REQUIRE(log->start().has_value());
  CHECK(guest.sync(*log).empty());
  guest.write(0, 1, 2);
  guest.write(1, 5, 2);
  CHECK(guest.sync(*log) == std::set<std::size_t>{1, 1000005});
  CHECK(guest.sync(*log).empty());
  guest.write(0, 1, 3);
  CHECK(guest.sync(*log) == std::set<std::size_t>{1});
}

TEST_CASE("DirtyLog.reports_new_data_in_former_holes") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  Guest guest({16 * mib});
  guest.write(0, 3);
  const auto log = log_of(guest, kind);
  if (!log) return;
  REQUIRE(log->start().has_value());
  guest.write(0, 4);     // a hole beside data
  guest.write(0, 2000);  // a hole far from data
  CHECK(guest.sync(*log) == std::set<std::size_t>{4, 2000});
  CHECK(guest.sync(*log).empty());
  guest.write(0, 2000, 7);
  guest.write(0, 2001, 7);
  CHECK(guest.sync(*log) == std::set<std::size_t>{2000, 2001});
}

TEST_CASE("DirtyLog.reports_pages_that_became_holes") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  Guest guest({4 * mib});
  for (std::size_t page = 0; page < 700; ++page) guest.write(0, page);
  const auto log = log_of(guest, kind);
  if (!log) return;
  REQUIRE(log->start().has_value());
  REQUIRE(guest.map.at(0).punch(10 * page_size, 3 * page_size).has_value());
  CHECK(guest.sync(*log) == std::set<std::size_t>{10, 11, 12});
  CHECK(guest.sync(*log).empty());
}

TEST_CASE("DirtyLog.reports_pages_that_became_holes_while_more_came_elsewhere") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  Guest guest({8 * mib});
  for (std::size_t page = 0; page < 700; ++page) guest.write(0, page);
  const auto log = log_of(guest, kind);
  if (!log) return;
  REQUIRE(log->start().has_value());
  REQUIRE(guest.map.at(0).punch(10 * page_size, 3 * page_size).has_value());
  guest.write(0, 800);                                                      // beside data
  for (std::size_t page = 1500; page < 1504; ++page) guest.write(0, page);  // far from it
  CHECK(guest.sync(*log) == std::set<std::size_t>{10, 11, 12, 800, 1500, 1501, 1502, 1503});
  CHECK(guest.sync(*log).empty());
}

TEST_CASE("DirtyLog.sees_writes_of_system_calls_through_the_guest_view") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  Guest guest({4 * mib});
  for (std::size_t page = 0; page < 100; ++page) guest.write(0, page);
  const auto log = log_of(guest, kind);
  if (!log) return;
  REQUIRE(log->start().has_value());
  int pipe_fds[2];
  REQUIRE(::pipe(pipe_fds) == 0);
  REQUIRE(::write(pipe_fds[1], "hello", 5) == 5);
  CHECK(::read(pipe_fds[0], guest.views[0].data() + 7 * page_size, 5) == 5);
  CHECK(guest.sync(*log) == std::set<std::size_t>{7});
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
}

TEST_CASE("DirtyLog.never_reports_memory_that_stays_untouched") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  Guest guest({std::size_t{4096} * mib});
  guest.write(0, 0);
  const auto log = log_of(guest, kind);
  if (!log) return;
  REQUIRE(log->start().has_value());
  CHECK(guest.sync(*log).empty());
  CHECK(guest.map.at(0).allocated_bytes().value() == page_size);
}

TEST_CASE("DirtyLog.stop_wakes_writers_and_start_works_again") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  Guest guest({4 * mib});
  for (std::size_t page = 0; page < 1024; ++page) guest.write(0, page);
  const auto log = log_of(guest, kind);
  if (!log) return;
  std::atomic<bool> end{false};
  std::atomic<std::uint64_t> rounds{0};
  std::thread writer([&] {
    while (!end) {
      for (std::size_t page = 0; page < 1024; ++page) guest.write(0, page, static_cast<int>(rounds & 0x7f));
      ++rounds;
    }
  });
  for (int round = 0; round < 5; ++round) {
    REQUIRE(log->start().has_value());
    guest.sync(*log);
    log->stop();
    const std::uint64_t seen = rounds;
    while (rounds == seen) std::this_thread::yield();  // a writer left asleep would hang here
  }
  end = true;
  writer.join();
  log->stop();
}

TEST_CASE("DirtyLog.loses_no_write_that_races_with_sync") {
  const auto kind = GENERATE(DirtyLogKind::wp_async, DirtyLogKind::wp_sync);
  constexpr std::size_t pages = 256;
  Guest guest({2 * mib});
  for (std::size_t page = 0; page < pages; ++page) guest.write(0, page, 0);
  const auto log = log_of(guest, kind);
  if (!log) return;
  REQUIRE(log->start().has_value());
  std::atomic<bool> end{false};
  std::thread writer([&] {
    std::uint32_t seed = 1;
    for (int value = 0; !end; ++value) {
      seed = seed * 1664525 + 1013904223;
      guest.write(0, (seed >> 8) % pages, value & 0x7f);
    }
  });
  std::vector<std::byte> copy(2 * mib);
  std::memcpy(copy.data(), guest.map.at(0).engine(), copy.size());
  const auto fetch = [&] {
    for (const std::size_t page : guest.sync(*log))
      std::memcpy(copy.data() + page * page_size, guest.map.at(0).engine() + page * page_size, page_size);
  };
  // The first copy raced with the writer as a first pass does: what it missed was written after start().
  for (int round = 0; round < 300; ++round) fetch();
  end = true;
  writer.join();
  fetch();
  CHECK(std::memcmp(copy.data(), guest.map.at(0).engine(), copy.size()) == 0);
}
