// SPDX-License-Identifier: Apache-2.0
// Asynchronous write protection and PAGEMAP_SCAN: what is seen and what is not. Hence the guest contract.
#include "tests/platform/fact.hpp"

using namespace migrationd::platform;

int main() {
  constexpr std::size_t pages = 512;
  const auto block = block_of(pages * page_size);
  const Mapping guest = view_of(*block);
  for (std::size_t page = 0; page < pages; ++page) guest.data()[page * page_size] = std::byte{1};
  auto scanner = need(PagemapScanner::open());
  const auto fault = async_protection(guest);
  const AddressRange all{guest.data(), guest.size()};
  need(scanner.protect(all));
  expect(written_pages(scanner, all) == 0, "after protection nothing counts as written");

  guest.data()[3 * page_size] = std::byte{2};
  expect(written_pages(scanner, all) == 1, "a write by the CPU is seen");
  expect(written_pages(scanner, all) == 0, "a scan protects again what it reports");
  int fds[2];
  if (::pipe(fds) != 0 || ::write(fds[1], "x", 1) != 1) skip("no pipe");
  expect(::read(fds[0], guest.data() + 4 * page_size, 1) == 1 && written_pages(scanner, all) == 1,
         "a write by a system call through this mapping is seen");
  block->engine()[5 * page_size] = std::byte{2};
  expect(written_pages(scanner, all) == 0, "a write through another mapping is not seen");
  touch(guest.data() + 6 * page_size);
  expect(written_pages(scanner, all) == 0, "a read is not a write");

  for (std::size_t page = 10; page < 20; ++page) guest.data()[page * page_size] = std::byte{3};
  expect(bool(block->punch(30 * page_size, 5 * page_size)), "pages can be punched under protection");
  expect(written_pages(scanner, all) == 10, "a page punched out after protection is not reported");
  return outcome();
}
