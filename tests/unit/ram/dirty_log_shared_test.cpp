// SPDX-License-Identifier: Apache-2.0
#include "ram/dirty_log_shared.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <set>
#include <thread>

using namespace migrationd;
using namespace migrationd::ram;

namespace {

constexpr std::uint64_t pages = 100;

UniqueFd sealed_memfd(std::uint64_t length) {
  UniqueFd fd(::memfd_create("bitmap", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(length)) == 0);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  return fd;
}

// A bitmap and the mapping of who fills it.
struct Shared {
  Mapping writer;
  std::vector<std::unique_ptr<SharedBitmap>> bitmaps;

  Shared() {
    UniqueFd fd = sealed_memfd((pages + 7) / 8);
    auto mapping = Mapping::of_fd(fd.get(), page_size);
    REQUIRE(mapping.has_value());
    writer = std::move(*mapping);
    auto bitmap = SharedBitmap::adopt(std::move(fd), pages);
    REQUIRE(bitmap.has_value());
    bitmaps.push_back(std::move(*bitmap));
  }
  void set(std::size_t page) {
    std::atomic_ref<unsigned char> byte(reinterpret_cast<unsigned char*>(writer.data())[page / 8]);
    byte.fetch_or(static_cast<unsigned char>(1U << (page % 8)), std::memory_order_release);
  }
};

struct Writer final : BitmapWriter {
  Result<void> log_writes(bool on) override {
    if (fails) return machine_error("no");
    switched.push_back(on);
    return {};
  }
  Result<void> settle_writes() override {
    if (fails) return machine_error("no");
    if (settle) settle();
    return {};
  }
  bool fails = false;
  std::vector<bool> switched;
  std::function<void()> settle;
};

std::set<std::size_t> pages_of(const Bitmap& bitmap) {
  std::set<std::size_t> out;
  for (std::size_t page = bitmap.find_set(0); page < bitmap.size(); page = bitmap.find_set(page + 1)) out.insert(page);
  return out;
}

RamMap map_of_one() {
  RamMap map;
  auto block = RamBlock::create("ram", pages * page_size, page_size);
  REQUIRE(block.has_value());
  REQUIRE(map.add(std::move(*block)).has_value());
  return map;
}

}  // namespace

TEST_CASE("SharedBitmap.moves_its_bits_and_none_behind_its_block") {
  Shared shared;
  Bitmap into(pages);
  for (const std::size_t page : {0, 7, 8, 63, 64, 99, 100, 103}) shared.set(page);
  CHECK(shared.bitmaps[0]->fetch(into) == 6);
  CHECK(pages_of(into) == std::set<std::size_t>{0, 7, 8, 63, 64, 99});
  CHECK(shared.bitmaps[0]->fetch(into) == 0);
}

TEST_CASE("SharedBitmap.refuses_what_is_too_small_or_could_shrink") {
  CHECK_FALSE(SharedBitmap::adopt(sealed_memfd(12), pages).has_value());
  CHECK(SharedBitmap::adopt(sealed_memfd(13), pages).has_value());
  CHECK_FALSE(SharedBitmap::adopt(UniqueFd(::memfd_create("loose", MFD_CLOEXEC)), pages).has_value());
}

TEST_CASE("SharedBitmap.loses_no_bit_that_is_set_while_it_is_fetched") {
  Shared shared;
  Bitmap into(pages);
  std::atomic<std::uint64_t> sum{0};
  std::atomic<bool> done{false};
  constexpr int rounds = 20000;
  std::thread writer([&] {
    for (int i = 0; i < rounds; ++i) shared.set(static_cast<std::size_t>(i) % 50);
    done = true;
  });
  std::set<std::size_t> seen;
  while (!done) sum += shared.bitmaps[0]->fetch(into);
  writer.join();
  sum += shared.bitmaps[0]->fetch(into);
  CHECK(pages_of(into).size() == 50);
  CHECK(sum >= 50);
  CHECK(sum <= rounds);
}

TEST_CASE("DirtyLogShared.asks_for_the_bits_before_it_fetches_them") {
  Shared shared;
  Writer writer;
  shared.set(3);  // before the start: the first pass sends it
  DirtyLogShared log(shared.bitmaps, writer);
  DirtyBitmaps into(1, Bitmap(pages));
  CHECK_FALSE(log.sync(into).has_value());
  REQUIRE(log.start().has_value());
  writer.settle = [&] { shared.set(5); };
  CHECK(log.sync(into).value() == 1);
  CHECK(pages_of(into[0]) == std::set<std::size_t>{5});
  log.stop();
  log.stop();
  CHECK(writer.switched == std::vector<bool>{true, false});
  writer.fails = true;
  CHECK_FALSE(log.start().has_value());
}

TEST_CASE("GivenBackPages.keeps_proved_ranges_while_somebody_listens") {
  const RamMap map = map_of_one();
  GivenBackPages given_back(map);
  DirtyBitmaps into(1, Bitmap(pages));
  CHECK(given_back.note(0, 0, page_size).has_value());
  CHECK(given_back.fetch(into) == 0);
  given_back.listen(true);
  CHECK(given_back.note(0, 98 * page_size, 2 * page_size).has_value());
  CHECK_FALSE(given_back.note(0, 99 * page_size, 2 * page_size).has_value());
  CHECK_FALSE(given_back.note(0, 100, page_size).has_value());
  CHECK_FALSE(given_back.note(0, ~std::uint64_t{0} - page_size + 1, page_size).has_value());
  CHECK_FALSE(given_back.note(1, 0, page_size).has_value());
  CHECK(given_back.fetch(into) == 2);
  CHECK(pages_of(into[0]) == std::set<std::size_t>{98, 99});
  CHECK(given_back.fetch(into) == 0);
}

TEST_CASE("DirtyLogUnion.reports_what_any_of_its_logs_knows") {
  const RamMap map = map_of_one();
  GivenBackPages given_back(map);
  Shared shared;
  Writer writer;
  DirtyLogUnion log(nullptr, std::make_unique<DirtyLogShared>(shared.bitmaps, writer), given_back);
  CHECK(log.kind() == "shared-bitmap");
  REQUIRE(log.start().has_value());
  CHECK(log.is_started());
  shared.set(1);
  REQUIRE(given_back.note(0, 2 * page_size, page_size).has_value());
  DirtyBitmaps into(1, Bitmap(pages));
  CHECK(log.sync(into).value() == 2);
  CHECK(pages_of(into[0]) == std::set<std::size_t>{1, 2});
  log.stop();
  CHECK_FALSE(log.is_started());
  writer.fails = true;
  CHECK_FALSE(log.start().has_value());
  CHECK_FALSE(log.is_started());
  DirtyLogUnion none(nullptr, nullptr, given_back);
  CHECK(none.kind() == "none");
}
