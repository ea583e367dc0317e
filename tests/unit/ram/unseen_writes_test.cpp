// SPDX-License-Identifier: Apache-2.0
//
// Writes that write protection of the guest's own mapping does not see (migrationd_guest.h, "Memory"): each is lost
// without the shared bitmap, and none with it.
#include "ram/dirty_log_shared.hpp"
#include "ram/dirty_log_wp.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>

using namespace migrationd;
using namespace migrationd::ram;

namespace {

constexpr std::uint64_t pages = 64;
constexpr std::uint64_t touched = 7;
constexpr std::byte written{0x5a};

struct BitsAreSetAtOnce final : BitmapWriter {
  Result<void> log_writes(bool) override { return {}; }
  Result<void> settle_writes() override { return {}; }
};

// A guest's block, all of it present, with both ways of tracking.
struct Tracked {
  RamMap map;
  Mapping view;
  Mapping bits;
  std::vector<std::unique_ptr<SharedBitmap>> bitmaps;
  BitsAreSetAtOnce writer;
  std::unique_ptr<LocalSpace> space;
  std::unique_ptr<GivenBackPages> given_back;

  Tracked() {
    auto block = RamBlock::create("ram", pages * page_size, page_size);
    REQUIRE(block.has_value());
    auto mapped = Mapping::of_fd((*block)->fd(), pages * page_size);
    REQUIRE(mapped.has_value());
    view = std::move(*mapped);
    std::memset(view.data(), 1, view.size());
    REQUIRE(map.add(std::move(*block)).has_value());
    UniqueFd fd(::memfd_create("bitmap", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    REQUIRE(::ftruncate(fd.get(), page_size) == 0);
    REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
    auto told = Mapping::of_fd(fd.get(), page_size);
    REQUIRE(told.has_value());
    bits = std::move(*told);
    auto bitmap = SharedBitmap::adopt(std::move(fd), pages);
    REQUIRE(bitmap.has_value());
    bitmaps.push_back(std::move(*bitmap));
    space = std::make_unique<LocalSpace>(std::vector<std::byte*>{view.data()});
    given_back = std::make_unique<GivenBackPages>(map);
  }

  std::byte* page() const { return view.data() + touched * page_size; }
  // What the writer of a page does behind its write.
  void tell() const {
    std::atomic_ref<unsigned char> byte(reinterpret_cast<unsigned char*>(bits.data())[touched / 8]);
    byte.fetch_or(static_cast<unsigned char>(1U << (touched % 8)), std::memory_order_release);
  }
  std::unique_ptr<DirtyLog> protection() {
    auto log = DirtyLogWp::make(map, *space);
    REQUIRE(log.has_value());
    return std::move(*log);
  }
  std::unique_ptr<DirtyLog> both() {
    return std::make_unique<DirtyLogUnion>(protection(), std::make_unique<DirtyLogShared>(bitmaps, writer),
                                           *given_back);
  }
};

// Pages reported after `write`; the byte is really there.
std::uint64_t reported(Tracked& guest, DirtyLog& log, const std::function<void()>& write) {
  DirtyBitmaps into(1, Bitmap(pages));
  *guest.page() = std::byte{1};
  REQUIRE(log.start().has_value());
  REQUIRE(log.sync(into).value() == 0);
  write();
  CHECK(std::memcmp(guest.page(), &written, 1) == 0);
  const auto found = log.sync(into);
  REQUIRE(found.has_value());
  CHECK(into[0].test(touched) == (*found == 1));
  log.stop();
  return *found;
}

bool can_protect() {
  Tracked guest;
  const auto log = guest.protection();
  const auto started = log->start();
  if (!started) WARN("skipped: " << started.error().text());
  return started.has_value();
}

// A write of `write`'s kind is lost by protection alone, and seen once its writer tells.
void lost_without_the_bitmap_only(Tracked& guest, const std::function<void()>& write) {
  const auto alone = guest.protection();
  CHECK(reported(guest, *alone, write) == 0);
  const auto both = guest.both();
  CHECK(reported(guest, *both, [&] {
          write();
          guest.tell();
        }) == 1);
}

}  // namespace

TEST_CASE("UnseenWrites.the_guests_own_are_seen_without_a_bitmap") {
  if (!can_protect()) return;
  Tracked guest;
  const auto alone = guest.protection();
  CHECK(reported(guest, *alone, [&] { *guest.page() = written; }) == 1);
}

TEST_CASE("UnseenWrites.through_another_mapping_need_the_bitmap") {
  if (!can_protect()) return;
  Tracked guest;
  auto helper = Mapping::of_fd(guest.map.at(0).fd(), pages * page_size);
  REQUIRE(helper.has_value());
  lost_without_the_bitmap_only(guest, [&] { helper->data()[touched * page_size] = written; });
}

TEST_CASE("UnseenWrites.of_a_forked_child_need_the_bitmap") {
  if (!can_protect()) return;
  Tracked guest;
  lost_without_the_bitmap_only(guest, [&] {
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      *guest.page() = written;
      ::_exit(0);
    }
    int status = 1;
    REQUIRE(::waitpid(child, &status, 0) == child);
    REQUIRE(status == 0);
  });
}

TEST_CASE("UnseenWrites.into_a_pinned_buffer_need_the_bitmap") {
  if (!can_protect()) return;
  Tracked guest;
  io_uring ring{};
  if (const int made = ::io_uring_queue_init(2, &ring, 0); made < 0) {
    WARN("skipped: io_uring: " << std::strerror(-made));
    return;
  }
  const iovec pinned{guest.page(), page_size};
  REQUIRE(::io_uring_register_buffers(&ring, &pinned, 1) == 0);
  const UniqueFd source(::memfd_create("source", MFD_CLOEXEC));
  REQUIRE(::write(source.get(), &written, 1) == 1);
  lost_without_the_bitmap_only(guest, [&] {
    io_uring_sqe* const request = ::io_uring_get_sqe(&ring);
    ::io_uring_prep_read_fixed(request, source.get(), guest.page(), 1, 0, 0);
    REQUIRE(::io_uring_submit(&ring) == 1);
    io_uring_cqe* done = nullptr;
    REQUIRE(::io_uring_wait_cqe(&ring, &done) == 0);
    REQUIRE(done->res == 1);
    ::io_uring_cqe_seen(&ring, done);
  });
  ::io_uring_queue_exit(&ring);
}
