// SPDX-License-Identifier: Apache-2.0
// A program of its own, run alone: for a moment it has all the huge pages of this machine.
#include "ram/ram_map.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <vector>

using namespace migrationd;
using namespace migrationd::ram;

namespace {

std::uint64_t huge_pages(const char* which) {
  std::ifstream file(std::string("/sys/kernel/mm/hugepages/hugepages-2048kB/") + which);
  std::uint64_t pages = 0;
  file >> pages;
  return pages;
}

UniqueFd huge_memfd(std::uint64_t length) {
  UniqueFd fd(::memfd_create("foreign", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | MFD_HUGE_2MB));
  REQUIRE(fd.get() >= 0);
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(length)) == 0);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) == 0);
  return fd;
}

}  // namespace

TEST_CASE("RamBlock.knows_a_huge_page_that_was_punched_and_taken") {
  if (huge_pages("nr_hugepages") == 0) {
    WARN("skipped: no huge pages (sysctl vm.nr_hugepages)");
    return;
  }
  // Promised to somebody: what is touched without a promise is not to be had. Others may give pages back meanwhile, so
  // that it takes several attempts at times.
  std::vector<Mapping> promised;
  for (int attempt = 0; attempt < 20; ++attempt) {
    UniqueFd fd = huge_memfd(2 * huge_page_size);
    auto block = RamBlock::adopt("huge", std::move(fd), 2 * huge_page_size, huge_page_size);
    REQUIRE(block.has_value());
    for (std::uint64_t free = huge_pages("free_hugepages") - huge_pages("resv_hugepages"); free > 0; free /= 2) {
      const std::size_t length = free * huge_page_size;
      void* const at = ::mmap(nullptr, length, PROT_READ | PROT_WRITE,
                              MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB | (21 << MAP_HUGE_SHIFT), -1, 0);
      if (at != MAP_FAILED) promised.emplace_back(static_cast<std::byte*>(at), length);
    }
    volatile std::byte* const memory = (*block)->engine();
    memory[huge_page_size + 100] = std::byte{1};
    auto whole = (*block)->check();
    if (whole) continue;
    CHECK(whole.error().text().find("block 'huge': the memory at 0x200000 could not be had") == 0);
    return;
  }
  WARN("skipped: others give huge pages back all the time");
}
