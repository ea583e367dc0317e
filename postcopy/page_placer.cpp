// SPDX-License-Identifier: Apache-2.0
#include "postcopy/page_placer.hpp"

#include <fmt/format.h>
#include <unistd.h>

namespace migrationd::postcopy {

Result<void> MemoryPlacer::place(std::size_t block, std::uint64_t page, const std::byte* bytes) {
  const ram::RamBlock& target = map_.at(block);
  const std::uint64_t offset = page * ram::page_size;
  for (std::size_t done = 0; done < ram::page_size;) {
    const ssize_t written =
        ::pwrite(target.fd(), bytes + done, ram::page_size - done, static_cast<off_t>(offset + done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      return Error::from_errno(fmt::format("block '{}': store the page at {}", printable(target.name()), hex(offset)),
                               written == 0 ? ENOSPC : errno);
    }
    done += static_cast<std::size_t>(written);
  }
  return {};
}

}  // namespace migrationd::postcopy
