// SPDX-License-Identifier: Apache-2.0
// A scan whose result list is full stops at walk_end and leaves the rest untouched. Hence the loop in fetch_written.
#include "tests/platform/fact.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>

using namespace migrationd;
using namespace migrationd::platform;

int main() {
  constexpr std::size_t pages = 64;
  const auto block = block_of(pages * page_size);
  const Mapping guest = view_of(*block);
  for (std::size_t page = 0; page < pages; ++page) guest.data()[page * page_size] = std::byte{1};
  auto scanner = need(PagemapScanner::open());
  const auto fault = async_protection(guest);
  const AddressRange all{guest.data(), guest.size()};
  need(scanner.protect(all));
  for (std::size_t page = 0; page < pages; page += 2) guest.data()[page * page_size] = std::byte{2};

  ram::kernel::PageRegion list[4];
  ram::kernel::ScanArguments request{};
  request.size = sizeof request;
  request.flags = ram::kernel::scan_protect_matching | ram::kernel::scan_check_async;
  request.start = reinterpret_cast<std::uint64_t>(guest.data());
  request.end = request.start + guest.size();
  request.regions = reinterpret_cast<std::uint64_t>(list);
  request.region_count = 4;
  request.category_mask = ram::kernel::page_is_written;
  request.return_mask = ram::kernel::page_is_written;
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const int found = ::ioctl(pagemap.get(), ram::kernel::pagemap_scan, &request);
  expect(found == 4, "a full list ends the scan");
  expect(request.walk_end < request.end && request.walk_end >= list[3].end, "walk_end says where it stopped");
  expect(written_pages(scanner, all) == pages / 2 - 4, "what lies behind walk_end is still reported afterwards");
  return outcome();
}
