// SPDX-License-Identifier: Apache-2.0
// What drops a page in all views, and what does not. Hence discards punch.
#include "tests/platform/fact.hpp"

#include <fcntl.h>
#include <sys/socket.h>

using namespace migrationd::platform;

int main() {
  const auto block = block_of(16 * page_size);
  const Mapping a = view_of(*block);
  const Mapping b = view_of(*block);
  for (std::size_t page = 0; page < 16; ++page) a.data()[page * page_size] = std::byte{7};
  expect(b.data()[page_size] == std::byte{7}, "what one view writes the other reads");

  ::madvise(a.data(), page_size, MADV_DONTNEED);
  expect(a.data()[0] == std::byte{7} && b.data()[0] == std::byte{7}, "MADV_DONTNEED keeps the file's bytes");
  ::madvise(a.data() + page_size, page_size, MADV_REMOVE);
  expect(b.data()[page_size] == std::byte{0}, "MADV_REMOVE drops them in all views");
  expect(bool(block->punch(2 * page_size, page_size)) && a.data()[2 * page_size] == std::byte{0} &&
             b.data()[2 * page_size] == std::byte{0},
         "a punched hole drops them in all views");

  std::byte page[page_size];
  std::memset(page, 9, sizeof page);
  expect(::pwrite(block->fd(), page, page_size, 3 * page_size) == static_cast<ssize_t>(page_size) &&
             a.data()[3 * page_size + 5] == std::byte{9} && b.data()[4 * page_size - 1] == std::byte{9},
         "pwrite to the memfd shows in all views, sealed or not");
  expect(::ftruncate(block->fd(), page_size) == -1 && errno == EPERM, "the seal stops shrinking");
  expect(::fcntl(block->fd(), F_ADD_SEALS, F_SEAL_SEAL) == 0, "seals can still be completed");

  int fds[2];
  if (::pipe(fds) == 0) {
    expect(::shutdown(fds[0], SHUT_RDWR) != 0, "shutdown(2) on a pipe fails: a stop needs its own descriptor");
  }
  return outcome();
}
