// SPDX-License-Identifier: Apache-2.0
// Memory of other processes: what is taken, and that its faults end nothing.
#include "ram/bus_guard.hpp"
#include "ram/ram_map.hpp"
#include "ram/userfaultfd.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

using namespace migrationd;
using namespace migrationd::ram;

namespace {

UniqueFd memfd(std::uint64_t length, int seals) {
  UniqueFd fd(::memfd_create("foreign", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(fd.get() >= 0);
  REQUIRE(::ftruncate(fd.get(), static_cast<off_t>(length)) == 0);
  REQUIRE(::fcntl(fd.get(), F_ADD_SEALS, seals) == 0);
  return fd;
}

std::string refusal(UniqueFd fd, std::uint64_t length, std::size_t page = page_size) {
  auto block = RamBlock::adopt("foreign", std::move(fd), length, page);
  REQUIRE_FALSE(block.has_value());
  return block.error().text();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("RamBlock.adopts_the_sealed_memfd_of_another_process") {
  UniqueFd fd = memfd(4 * page_size, F_SEAL_SHRINK);
  const char byte = 7;
  REQUIRE(::pwrite(fd.get(), &byte, 1, page_size) == 1);
  auto block = RamBlock::adopt("foreign", std::move(fd), 4 * page_size, page_size);
  REQUIRE(block.has_value());
  CHECK((*block)->engine()[page_size] == std::byte{7});
  CHECK((*block)->check().has_value());
}

TEST_CASE("RamBlock.refuses_a_foreign_memfd_that_could_shrink_or_is_not_what_was_said") {
  CHECK(contains(refusal(memfd(page_size, 0), page_size), "not sealed against shrinking"));
  CHECK(contains(refusal(memfd(page_size, F_SEAL_SHRINK), 2 * page_size), "has 4096 bytes, not 8192"));
  CHECK(contains(refusal(memfd(huge_page_size, F_SEAL_SHRINK), huge_page_size, huge_page_size), "pages of 4096 bytes"));
  CHECK(contains(refusal(memfd(page_size, F_SEAL_SHRINK), 100), "not a multiple"));
  CHECK(contains(refusal(memfd(page_size, F_SEAL_SHRINK | F_SEAL_WRITE), page_size), "Operation not permitted"));
  CHECK(contains(refusal(UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC)), page_size), "no memfd"));
  CHECK(contains(refusal(UniqueFd(::open("/tmp", O_RDONLY | O_CLOEXEC)), page_size), "no memfd"));
  CHECK(contains(refusal(UniqueFd(), page_size), "no memfd"));
}

TEST_CASE("RamBlock.takes_over_what_another_process_hands_over_sealed_or_not_and_larger_than_the_block") {
  for (const int seals : {0, F_SEAL_SHRINK, F_SEAL_SHRINK | F_SEAL_GROW}) {
    UniqueFd fd = memfd(4 * page_size, seals);
    const char byte = 7;
    REQUIRE(::pwrite(fd.get(), &byte, 1, page_size) == 1);
    auto block = RamBlock::take_over("ram0", std::move(fd), 2 * page_size);
    REQUIRE(block.has_value());
    CHECK((*block)->length() == 2 * page_size);
    CHECK((*block)->engine()[page_size] == std::byte{7});
    CHECK((*block)->check().has_value());
  }
}

TEST_CASE("RamBlock.takes_over_no_descriptor_of_the_wrong_kind_size_or_mode") {
  const auto told = [](UniqueFd fd, std::uint64_t length) {
    auto block = RamBlock::take_over("ram0", std::move(fd), length);
    REQUIRE_FALSE(block.has_value());
    return block.error().text();
  };
  CHECK(contains(told(memfd(page_size, 0), 2 * page_size), "file has 4096 bytes, the block 8192"));
  CHECK(contains(told(memfd(page_size, 0), 100), "not a multiple"));
  CHECK(contains(told(memfd(page_size, F_SEAL_WRITE), page_size), "Operation not permitted"));
  CHECK(contains(told(UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC)), page_size), "no shared memory"));
  CHECK(contains(told(UniqueFd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC)), page_size), "no shared memory"));
  CHECK(contains(told(UniqueFd(), page_size), "look at the descriptor"));
  const UniqueFd fd = memfd(page_size, 0);
  const std::string path = "/proc/self/fd/" + std::to_string(fd.get());
  CHECK(contains(told(UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)), page_size), "not open for reading and"));
}

TEST_CASE("RamBlock.notices_that_memory_taken_over_was_cut_off_behind_its_back") {
  UniqueFd fd = memfd(4 * page_size, 0);
  const UniqueFd other(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  auto block = RamBlock::take_over("ram0", std::move(fd), 4 * page_size);
  REQUIRE(block.has_value());
  REQUIRE(::ftruncate(other.get(), page_size) == 0);
  CHECK(static_cast<volatile std::byte*>((*block)->engine())[3 * page_size] == std::byte{0});
  const auto checked = (*block)->check();
  REQUIRE_FALSE(bool(checked));
  CHECK(contains(checked.error().text(), "block 'ram0': the memory at 0x3000 could not be had"));
}

TEST_CASE("Userfaultfd.and_page_map_are_taken_for_what_they_are") {
  CHECK_FALSE(Userfaultfd::adopt(memfd(page_size, 0)).has_value());
  CHECK_FALSE(PagemapScanner::adopt(memfd(page_size, 0)).has_value());
  CHECK_FALSE(PagemapScanner::adopt(UniqueFd(::open("/proc/self/maps", O_RDONLY | O_CLOEXEC))).has_value());
  CHECK(PagemapScanner::adopt(UniqueFd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC))).has_value());
}

TEST_CASE("BusGuard.puts_zeros_where_memory_is_gone_and_says_where") {
  // A file that is shorter than its mapping faults as a huge page does that somebody else took.
  const UniqueFd fd = memfd(page_size, 0);
  auto mapping = Mapping::of_fd(fd.get(), 4 * page_size);
  REQUIRE(mapping.has_value());
  auto guard = BusGuard::watch(mapping->data(), mapping->size(), page_size);
  REQUIRE(guard.has_value());
  volatile std::byte* const memory = mapping->data();
  CHECK(memory[10] == std::byte{0});
  CHECK_FALSE((*guard)->broken().has_value());
  memory[2 * page_size + 5] = std::byte{9};
  CHECK((*guard)->broken() == 2 * page_size);
  CHECK(memory[2 * page_size + 5] == std::byte{9});
  CHECK(memory[3 * page_size] == std::byte{0});
  CHECK((*guard)->broken() == 2 * page_size);
}

TEST_CASE("BusGuard.leaves_a_bus_error_elsewhere_as_deadly_as_it_was") {
  const UniqueFd fd = memfd(page_size, 0);
  auto guarded = Mapping::of_fd(fd.get(), page_size);
  auto bare = Mapping::of_fd(fd.get(), 2 * page_size);
  REQUIRE(guarded.has_value());
  REQUIRE(bare.has_value());
  auto guard = BusGuard::watch(guarded->data(), guarded->size(), page_size);
  REQUIRE(guard.has_value());
  int status = 0;
  const pid_t faulting = ::fork();
  if (faulting == 0) {
    ::close(2);  // a sanitizer's report
    volatile std::byte* const memory = bare->data();
    memory[page_size] = std::byte{1};
    ::_exit(0);
  }
  REQUIRE(::waitpid(faulting, &status, 0) == faulting);
  CHECK_FALSE((WIFEXITED(status) && WEXITSTATUS(status) == 0));
}
