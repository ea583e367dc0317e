// SPDX-License-Identifier: Apache-2.0
// The package of a postcopy, and the page records behind it. A package that is taken apart must give the same bytes
// when it is put together again. The rest of the input is read as the page stream of a small machine: whatever it is,
// no page is placed outside a block, and none twice.
#include "postcopy/destination_package.hpp"
#include "postcopy/page_intake.hpp"
#include "tests/unit/ram/memory_channel.hpp"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <utility>

using namespace migrationd;
using namespace migrationd::postcopy;
using migrationd::ram::test::MemoryChannel;

namespace {

const std::vector<BlockShape> shapes{{"a", 16, 1}, {"b", 8, 4}};

void must(bool condition) {
  if (!condition) std::abort();
}

void take_package(ByteView bytes) {
  const auto package = parse_package(bytes, 1, {});
  if (!package) return;
  ByteWriter sections;
  for (const stream::DeviceSection& section : package->sections) stream::encode_device_section(sections, section);
  const auto found = std::search(bytes.begin(), bytes.end(), sections.view().begin(), sections.view().end());
  must(sections.size() == 0 || found != bytes.end());
}

class CheckingPlacer final : public PagePlacer {
 public:
  Result<void> place(std::size_t block, std::uint64_t page, const std::byte* bytes) override {
    // Every byte of it is there to be read.
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < shapes[block].host_pages * stream::page_bytes; ++i)
      sum += std::to_integer<unsigned>(bytes[i]);
    must(sum <= 255 * shapes[block].host_pages * stream::page_bytes);
    return place_zero(block, page);
  }
  Result<void> place_zero(std::size_t block, std::uint64_t page) override {
    must(page % shapes[block].host_pages == 0 && page < shapes[block].pages);
    must(placed_.emplace(block, page).second);
    return {};
  }

 private:
  std::set<std::pair<std::size_t, std::uint64_t>> placed_;
};

void take_pages(ByteView bytes, bool bare) {
  MemoryChannel channel(bytes.size() % 97 + 1);
  channel.bytes.assign(bytes.begin(), bytes.end());
  transports::BufferedReader reader(channel);
  DestinationPages pages(shapes);
  pages.need({0, 3});
  pages.need({1, 4});
  CheckingPlacer placer;
  IntakeCounters counters;
  MemoryChannel answers;
  ReturnChannel requests(pages.blocks());
  must(requests.open(answers).has_value());
  PageIntake intake(reader, pages, pages.blocks(), placer, counters);
  if (bare) {
    [[maybe_unused]] const auto ended = intake.read_bare();
  } else {
    [[maybe_unused]] const auto ended = intake.read_stream(1, requests);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const ByteView bytes = std::as_bytes(std::span(data, size)).subspan(1);
  if (data[0] % 3 == 0) take_package(bytes);
  if (data[0] % 3 == 1) take_pages(bytes, false);
  if (data[0] % 3 == 2) take_pages(bytes, true);
  return 0;
}
