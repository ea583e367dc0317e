// SPDX-License-Identifier: Apache-2.0
//
// What being watched costs a guest, and its daemon, per way of tracking: dirty-cost-bench BYTES ROUNDS.
//
// The guest writes one word of every page, in order, all of its memory present. Prints "NAME VALUE" per round:
//
//   plain-write      nanoseconds a page, nobody watches
//   protected-write  the same, each page's first write since it was protected: the kernel lifts the protection
//   bitmap-write     the same, unprotected, and its bit is set in a shared bitmap
//   protected-fetch  nanoseconds a page of the sync that finds all of them written and protects them again
//   bitmap-fetch     the same for the bitmap
//   protected-clean  milliseconds a GiB of the sync that finds nothing
//   bitmap-clean     the same for the bitmap
//
// Write protection works alike in this process and in another one: it is the guest's own page table either way.
// Run by bench.py.
#include "guest/migrationd_guest.h"
#include "ram/dirty_log_factory.hpp"
#include "ram/dirty_log_shared.hpp"
#include "ram/ram_map.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

using namespace migrationd;

namespace {

class NobodyToAsk final : public ram::BitmapWriter {
 public:
  Result<void> log_writes(bool) override { return {}; }
  Result<void> settle_writes() override { return {}; }
};

double nanoseconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - since).count();
}

struct Guest {
  ram::RamMap map;
  std::vector<ram::Mapping> views;
  ram::Mapping bits;
  std::vector<std::unique_ptr<ram::SharedBitmap>> bitmaps;
  std::uint64_t pages = 0;

  Result<void> make(std::uint64_t bytes) {
    pages = bytes / ram::page_size;
    MD_TRY(auto block, ram::RamBlock::create("bench", bytes, ram::page_size));
    MD_TRY(auto view, ram::Mapping::of_fd(block->fd(), bytes));
    MD_CHECK(map.add(std::move(block)));
    std::memset(view.data(), 0xa5, bytes);
    views.push_back(std::move(view));
    UniqueFd fd(::memfd_create("bitmap", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    const std::uint64_t length = (pages / 8 + ram::page_size) / ram::page_size * ram::page_size;
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(length)) != 0 ||
        ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
      return Error::from_errno("make a bitmap");
    }
    MD_TRY(bits, ram::Mapping::of_fd(fd.get(), length));
    MD_TRY(auto bitmap, ram::SharedBitmap::adopt(std::move(fd), pages));
    bitmaps.push_back(std::move(bitmap));
    return {};
  }

  // Nanoseconds a page.
  template <class After>
  double write_all(After after) {
    const auto started = std::chrono::steady_clock::now();
    for (std::uint64_t page = 0; page < pages; ++page) {
      *static_cast<volatile std::uint64_t*>(static_cast<void*>(views[0].data() + page * ram::page_size)) = page;
      after(page);
    }
    return nanoseconds(started) / static_cast<double>(pages);
  }
};

Result<double> sync(ram::DirtyLog& log, ram::DirtyBitmaps& dirty, std::uint64_t expected) {
  const auto started = std::chrono::steady_clock::now();
  MD_TRY(const std::uint64_t found, log.sync(dirty));
  const double took = nanoseconds(started);
  if (found != expected) return machine_error(fmt::format("{} pages are dirty, not {}", found, expected));
  return took;
}

// A round of one log: all pages written, found, and then nothing.
template <class After>
Result<void> round(Guest& guest, ram::DirtyLog& log, ram::DirtyBitmaps& dirty, const char* name, After after) {
  const double written = guest.write_all(after);
  MD_TRY(const double fetched, sync(log, dirty, guest.pages));
  MD_TRY(const double clean, sync(log, dirty, 0));
  const double gib = static_cast<double>(guest.pages * ram::page_size) / (1 << 30);
  fmt::print("{0}-write {1:.1f}\n{0}-fetch {2:.1f}\n{0}-clean {3:.3f}\n", name, written,
             fetched / static_cast<double>(guest.pages), clean / 1e6 / gib);
  return {};
}

Result<void> measure(std::uint64_t bytes, int rounds) {
  Guest guest;
  MD_CHECK(guest.make(bytes));
  NobodyToAsk writer;
  ram::DirtyLogShared told(guest.bitmaps, writer);
  ram::LocalSpace space{std::span<const ram::Mapping>(guest.views)};
  ram::DirtyBitmaps dirty;
  dirty.emplace_back(guest.pages);
  for (int at = 0; at < rounds; ++at) {
    guest.write_all([](std::uint64_t) {});  // what the log before left is unmapped
    fmt::print("plain-write {:.1f}\n", guest.write_all([](std::uint64_t) {}));
    MD_CHECK(told.start());
    MD_CHECK(round(guest, told, dirty, "bitmap", [&](std::uint64_t page) {
      md_bitmap_set(reinterpret_cast<unsigned char*>(guest.bits.data()), page * ram::page_size, ram::page_size);
    }));
    told.stop();
    MD_TRY(auto watched, ram::make_dirty_log(guest.map, space, ram::DirtyLogKind::automatic));
    MD_CHECK(watched->start());
    MD_CHECK(round(guest, *watched, dirty, "protected", [](std::uint64_t) {}));
    watched->stop();
  }
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: dirty-cost-bench BYTES ROUNDS\n");
    return 2;
  }
  const auto done = measure(std::strtoull(argv[1], nullptr, 10), std::atoi(argv[2]));
  if (!done) fmt::print(stderr, "{}\n", done.error().text());
  return done ? 0 : 1;
}
