// SPDX-License-Identifier: Apache-2.0
// Filling fresh memory: pwrite spares the zeroing and the fault of each page. Printed, and asserted only in order of
// magnitude, for a loaded machine tells nothing about speed.
#include "tests/platform/fact.hpp"

#include <vector>

using namespace migrationd::platform;

int main() {
  constexpr std::size_t length = std::size_t{128} << 20;
  constexpr std::size_t piece = std::size_t{256} << 10;
  const std::vector<std::byte> data(piece, std::byte{5});
  double by_write = 1e9;
  double by_view = 1e9;
  for (int round = 0; round < 3; ++round) {
    const auto written = block_of(length);
    auto start = std::chrono::steady_clock::now();
    for (std::size_t at = 0; at < length; at += piece)
      if (::pwrite(written->fd(), data.data(), piece, static_cast<off_t>(at)) != static_cast<ssize_t>(piece))
        skip("pwrite failed");
    by_write = std::min(by_write, milliseconds_since(start));
    const auto touched = block_of(length);
    start = std::chrono::steady_clock::now();
    for (std::size_t at = 0; at < length; at += piece) std::memcpy(touched->engine() + at, data.data(), piece);
    by_view = std::min(by_view, milliseconds_since(start));
  }
  fmt::print("fresh 128 MiB: pwrite {:.1f} ms, through a mapping {:.1f} ms, ratio {:.2f}\n", by_write, by_view,
             by_view / by_write);
  expect(by_write < 2 * by_view, "pwrite to fresh memory is not slower than a mapping by an order of magnitude");
  return outcome();
}
