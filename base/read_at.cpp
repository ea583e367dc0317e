// SPDX-License-Identifier: Apache-2.0
#include "base/read_at.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>

namespace migrationd {

Result<std::size_t> read_at(int fd, std::uint64_t offset, std::span<std::byte> into) {
  std::size_t done = 0;
  while (done < into.size()) {
    const ssize_t got = ::pread(fd, into.data() + done, into.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::from_errno(fmt::format("read at {:#x}", offset + done));
    if (got == 0) break;
    done += static_cast<std::size_t>(got);
  }
  return done;
}

}  // namespace migrationd
