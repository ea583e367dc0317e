// SPDX-License-Identifier: Apache-2.0
#include "ram/guest_space.hpp"

#include <sys/mman.h>

namespace migrationd::ram {

std::vector<std::byte*> LocalSpace::addresses_of(std::span<const Mapping> views) {
  std::vector<std::byte*> addresses;
  for (const Mapping& view : views) addresses.push_back(view.data());
  return addresses;
}

Result<Watch> LocalSpace::watch(WatchPurpose purpose, std::uint64_t features) {
  std::optional<PagemapScanner> pages;
  if (purpose == WatchPurpose::protect_async) {
    MD_TRY(pages, PagemapScanner::open());
  }
  // Asynchronous faults are the kernel's to resolve, and a guest of this process gives memory that is missing to no
  // system call. A synchronous one must not fail a guest's system call into its own memory.
  MD_TRY(auto userfault, Userfaultfd::open(features, purpose != WatchPurpose::protect_sync));
  return Watch{std::move(userfault), std::move(pages)};
}

Result<void> LocalSpace::forbid_huge_pages(const RamMap& map) {
  // A kernel without transparent huge pages says EINVAL, and has none to forbid.
  for (std::size_t block = 0; block < map.size() && block < addresses().size(); ++block)
    ::madvise(addresses()[block], map.at(block).length(), MADV_NOHUGEPAGE);
  return {};
}

}  // namespace migrationd::ram
