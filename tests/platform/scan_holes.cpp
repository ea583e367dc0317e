// SPDX-License-Identifier: Apache-2.0
// The first scan with protection takes holes for written and builds page tables for them. Hence only data extents are
// protected. Prints the speed of a clean scan.
#include "tests/platform/fact.hpp"

#include <algorithm>

using namespace migrationd::platform;

int main() {
  constexpr std::size_t length = std::size_t{1} << 30;
  constexpr std::size_t data = std::size_t{4} << 20;
  const auto block = block_of(length);
  auto scanner = need(PagemapScanner::open());
  {
    const Mapping guest = view_of(*block);
    std::memset(guest.data(), 1, data);
    const auto fault = async_protection(guest);
    const std::uint64_t before = page_tables();
    need(scanner.protect({guest.data(), data}));
    expect(page_tables() - before < 64 * 1024, "protecting data alone builds no page tables for holes");
    expect(written_pages(scanner, {guest.data(), data}) == 0, "protected data is clean");
    const std::uint64_t holes = written_pages(scanner, {guest.data() + data, length - data});
    expect(holes == (length - data) / page_size, "the first scan reports holes as written");
    const std::uint64_t tables = page_tables() - before;
    fmt::print("page tables for {} MiB of holes: {} KiB\n", (length - data) >> 20, tables >> 10);
    expect(tables > (std::size_t{1} << 20), "and builds page tables for them");
    expect(pages_in(*block) == data / page_size, "though it allocates none");
  }
  const Mapping guest = view_of(*block);
  std::memset(guest.data(), 1, length / 2);
  const auto fault = async_protection(guest);
  const AddressRange half{guest.data(), length / 2};
  need(scanner.protect(half));
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    expect(written_pages(scanner, half) == 0, "a clean scan finds nothing");
    best = std::min(best, milliseconds_since(start));
  }
  fmt::print("clean scan: {:.2f} ms per GiB\n", best * 2);
  return outcome();
}
