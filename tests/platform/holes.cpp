// SPDX-License-Identifier: Apache-2.0
// Reading a hole through a mapping allocates it; asking the file does not. Hence `extents`.
#include "tests/platform/fact.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

using namespace migrationd::platform;

int main() {
  const auto block = block_of(64 * page_size);
  const Mapping view = view_of(*block);
  std::byte buffer[page_size];
  unsigned char resident[64];

  expect(::pread(block->fd(), buffer, page_size, 3 * page_size) == static_cast<ssize_t>(page_size) &&
             pages_in(*block) == 0,
         "pread of the memfd leaves a hole a hole");
  expect(::lseek(block->fd(), 0, SEEK_DATA) == -1 && pages_in(*block) == 0, "SEEK_DATA leaves a hole a hole");
  expect(::mincore(view.data(), view.size(), resident) == 0 && pages_in(*block) == 0, "mincore leaves a hole a hole");
  touch(view.data() + 5 * page_size);
  expect(pages_in(*block) == 1, "a load from a hole through a mapping allocates it");
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) skip("no socketpair");
  expect(::send(pair[0], view.data() + 7 * page_size, page_size, 0) == static_cast<ssize_t>(page_size) &&
             pages_in(*block) == 2,
         "send from a hole through a mapping allocates it");
  expect(::lseek(block->fd(), 0, SEEK_DATA) == 5 * static_cast<off_t>(page_size) &&
             ::lseek(block->fd(), 5 * page_size, SEEK_HOLE) == 6 * static_cast<off_t>(page_size),
         "SEEK_DATA and SEEK_HOLE see single pages");

  struct {
    std::uint64_t offset, length;
  } range{0, 64 * page_size};
  struct {
    std::uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } counts{};
  if (::syscall(451, block->fd(), &range, &counts, 0) != 0) {
    fmt::print("cachestat(2) is not there: extents falls back to SEEK_HOLE\n");
  } else {
    expect(counts.cached == 2 && pages_in(*block) == 2, "cachestat counts a memfd's pages and allocates none");
  }
  return outcome();
}
