// SPDX-License-Identifier: Apache-2.0
//
// What postcopy knows of a block: its name and how its memory is cut into pages.
#pragma once

#include <cstdint>
#include <string>

namespace migrationd::postcopy {

// A block as both ends must see it.
struct BlockShape {
  std::string name;
  std::uint64_t pages = 0;       // target pages
  std::uint64_t host_pages = 1;  // target pages per page of the destination's backing: 1, or 512 for 2 MiB
  bool operator==(const BlockShape&) const = default;
};

}  // namespace migrationd::postcopy
