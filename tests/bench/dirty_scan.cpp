// SPDX-License-Identifier: Apache-2.0
//
// How long one sync of the dirty log takes over memory nobody writes: dirty-scan-bench BYTES ROUNDS.
// Prints "kind NAME" and a line "ms VALUE" per round. Run by bench.py.
#include "ram/dirty_log_factory.hpp"
#include "ram/ram_map.hpp"

#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

using namespace migrationd;

namespace {

Result<void> measure(std::uint64_t bytes, int rounds) {
  ram::RamMap map;
  MD_TRY(auto block, ram::RamBlock::create("bench", bytes, ram::page_size));
  MD_TRY(auto view, ram::Mapping::of_fd(block->fd(), bytes));
  MD_CHECK(map.add(std::move(block)));
  std::memset(view.data(), 0xa5, bytes);  // all of it present: holes would cost nothing
  std::vector<ram::Mapping> views;
  views.push_back(std::move(view));
  ram::LocalSpace space{std::span<const ram::Mapping>(views)};
  MD_TRY(auto log, ram::make_dirty_log(map, space, ram::DirtyLogKind::automatic));
  MD_CHECK(log->start());
  ram::DirtyBitmaps dirty;
  dirty.emplace_back(bytes / ram::page_size);
  MD_CHECK(log->sync(dirty));
  fmt::print("kind {}\n", log->kind());
  for (int round = 0; round < rounds; ++round) {
    const auto started = std::chrono::steady_clock::now();
    MD_TRY(const auto pages, log->sync(dirty));
    const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - started;
    if (pages != 0) return Error(ErrorKind::machine, fmt::format("{} pages of untouched memory are dirty", pages));
    fmt::print("ms {:.3f}\n", took.count());
  }
  log->stop();
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    fmt::print(stderr, "usage: dirty-scan-bench BYTES ROUNDS\n");
    return 2;
  }
  const auto done = measure(std::strtoull(argv[1], nullptr, 10), std::atoi(argv[2]));
  if (!done) fmt::print(stderr, "{}\n", done.error().text());
  return done ? 0 : 1;
}
