// SPDX-License-Identifier: Apache-2.0
// hugetlb: SEEK_DATA knows nothing, UFFDIO_CONTINUE tells pages from holes without allocating, write protection works
// on whole huge pages. Skipped where the pool is empty (vm.nr_hugepages).
#include "tests/platform/fact.hpp"

using namespace migrationd;
using namespace migrationd::platform;

int main() {
  const auto block = block_of(3 * huge_page_size, huge_page_size);
  expect(::lseek(block->fd(), 0, SEEK_DATA) == 0, "SEEK_DATA says data although there is none");
  expect(need(block->allocated_bytes()) == 0, "and nothing is allocated");
  std::byte buffer[page_size];
  expect(::pwrite(block->fd(), buffer, page_size, 0) == -1, "there is no pwrite");

  const Mapping guest = view_of(*block);
  guest.data()[huge_page_size] = std::byte{1};
  {
    const Mapping probe = view_of(*block);
    auto fault = need(Userfaultfd::open(ram::kernel::feature_minor_hugetlbfs, true));
    need(fault.register_range({probe.data(), probe.size()}, UFFDIO_REGISTER_MODE_MINOR));
    expect(!need(fault.map_existing(probe.data(), huge_page_size)), "UFFDIO_CONTINUE refuses a hole");
    expect(need(fault.map_existing(probe.data() + huge_page_size, huge_page_size)), "and maps a page that is there");
    expect(need(fault.map_existing(probe.data() + huge_page_size, huge_page_size)), "also when asked twice");
    expect(need(block->allocated_bytes()) == huge_page_size, "and allocates nothing");
  }
  auto scanner = need(PagemapScanner::open());
  const auto fault = async_protection(guest);
  const AddressRange page{guest.data() + huge_page_size, huge_page_size};
  need(scanner.protect(page));
  expect(written_pages(scanner, page) == 0, "a protected huge page is clean");
  page.start[5] = std::byte{9};
  expect(written_pages(scanner, page) == huge_page_size / page_size, "one byte written makes all of it dirty");
  return outcome();
}
