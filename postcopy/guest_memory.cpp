// SPDX-License-Identifier: Apache-2.0
#include "postcopy/guest_memory.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

namespace migrationd::postcopy {
namespace {

bool has_huge_pages(const ram::RamMap& map) noexcept {
  for (std::size_t i = 0; i < map.size(); ++i) {
    if (map.at(i).backing_page() != ram::page_size) return true;
  }
  return false;
}

Result<ram::Userfaultfd> open_userfaultfd(const ram::RamMap& map, ram::GuestSpace& space) {
  std::uint64_t features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_THREAD_ID;
  if (has_huge_pages(map)) features |= UFFD_FEATURE_MISSING_HUGETLBFS;
  auto opened = space.watch(ram::WatchPurpose::missing, features);
  if (opened) return std::move(opened->userfault);
  return std::move(opened).error().with("postcopy needs userfaultfd");
}

std::string at_page(const ram::RamBlock& block, std::uint64_t page) {
  return fmt::format("block '{}': place the page at {}", printable(block.name()), hex(page * ram::page_size));
}

}  // namespace

Result<void> check_userfaultfd(const ram::RamMap& map, ram::GuestSpace& space) {
  { MD_TRY([[maybe_unused]] const ram::Userfaultfd opened, open_userfaultfd(map, space)); }
  space.unwatch(ram::WatchPurpose::missing);
  return {};
}

Result<void> check_userfaultfd(const ram::RamMap& map) {
  ram::LocalSpace here(std::vector<std::byte*>{});
  return check_userfaultfd(map, here);
}

Result<void> forbid_huge_pages(const ram::RamMap& map, ram::GuestSpace* space) {
  // A kernel without transparent huge pages says EINVAL, and has none to forbid.
  for (std::size_t i = 0; i < map.size(); ++i) {
    const ram::RamBlock& block = map.at(i);
    ::madvise(block.engine(), block.length(), MADV_NOHUGEPAGE);
  }
  return space != nullptr ? space->forbid_huge_pages(map) : Result<void>();
}

Result<std::unique_ptr<GuestMemory>> GuestMemory::open(ram::RamMap& map, ram::GuestSpace& space) {
  if (space.addresses().size() != map.size()) return machine_error("postcopy: every block needs its guest view");
  std::unique_ptr<GuestMemory> memory(new GuestMemory(map, space));
  MD_TRY(auto userfault, open_userfaultfd(map, space));
  memory->userfault_.emplace(std::move(userfault));
  if (has_huge_pages(map)) {
    void* const zeros = ::mmap(nullptr, ram::huge_page_size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (zeros == MAP_FAILED) return Error::from_errno("map a page of zeros");
    memory->zeros_ = ram::Mapping(static_cast<std::byte*>(zeros), ram::huge_page_size);
  }
  // Nobody waits before open() has returned, so that a failure may close the descriptor.
  for (std::size_t i = 0; i < map.size(); ++i) {
    MD_CHECK(memory->userfault_->register_range(space.range(i, 0, map.at(i).length()), UFFDIO_REGISTER_MODE_MISSING));
  }
  MD_CHECK(memory->shut_engine_view(true));
  memory->open_ = true;
  return memory;
}

GuestMemory::~GuestMemory() {
  if (open_) abandon();
  // Not opened to the end: nobody waits.
  if (!userfault_) return;
  userfault_.reset();
  space_.unwatch(ram::WatchPurpose::missing);
}

Result<void> GuestMemory::shut_engine_view(bool shut) {
  for (std::size_t i = 0; i < map_.size(); ++i) {
    const ram::RamBlock& block = map_.at(i);
    if (::mprotect(block.engine(), block.length(), shut ? PROT_NONE : PROT_READ | PROT_WRITE) != 0)
      return Error::from_errno(
          fmt::format("block '{}': {} the engine's view", printable(block.name()), shut ? "shut" : "open"));
  }
  return {};
}

Result<void> GuestMemory::wake(std::byte* at, std::uint64_t length) {
  uffdio_range range{reinterpret_cast<std::uint64_t>(at), length};
  if (::ioctl(fd(), UFFDIO_WAKE, &range) != 0) return Error::from_errno("wake who waits for a page");
  return {};
}

Result<void> GuestMemory::place(std::size_t block, std::uint64_t page, const std::byte* bytes) {
  const ram::RamBlock& target = map_.at(block);
  std::byte* const at = space_.range(block, page * ram::page_size, 0).start;
  uffdio_copy request{};
  request.dst = reinterpret_cast<std::uint64_t>(at);
  request.src = reinterpret_cast<std::uint64_t>(bytes);
  request.len = target.backing_page();
  while (::ioctl(fd(), UFFDIO_COPY, &request) != 0) {
    if (errno == EEXIST) return wake(at, target.backing_page());
    // The address space changes at the moment (fork, mmap): it ends by itself.
    if (errno != EAGAIN) return Error::from_errno(at_page(target, page));
    request.copy = 0;
  }
  return {};
}

Result<void> GuestMemory::place_zero(std::size_t block, std::uint64_t page) {
  const ram::RamBlock& target = map_.at(block);
  // hugetlb has no ZEROPAGE.
  if (target.backing_page() != ram::page_size) return place(block, page, zeros_.data());
  std::byte* const at = space_.range(block, page * ram::page_size, 0).start;
  uffdio_zeropage request{};
  request.range = {reinterpret_cast<std::uint64_t>(at), ram::page_size};
  while (::ioctl(fd(), UFFDIO_ZEROPAGE, &request) != 0) {
    if (errno == EEXIST) return wake(at, ram::page_size);
    if (errno != EAGAIN) return Error::from_errno(at_page(target, page));
    request.zeropage = 0;
  }
  return {};
}

std::optional<HostPage> GuestMemory::locate(std::uint64_t address) const noexcept {
  for (std::size_t i = 0; i < map_.size(); ++i) {
    const auto start = reinterpret_cast<std::uint64_t>(space_.addresses()[i]);
    if (address >= start && address - start < map_.at(i).length()) {
      return HostPage{i, (address - start) / ram::page_size};
    }
  }
  return std::nullopt;
}

Result<void> GuestMemory::close() {
  // First the engine's view: if that fails, nobody has been woken.
  MD_CHECK(shut_engine_view(false));
  for (std::size_t i = 0; i < map_.size(); ++i) {
    MD_CHECK(userfault_->unregister_range(space_.range(i, 0, map_.at(i).length())));
  }
  open_ = false;
  userfault_.reset();
  space_.unwatch(ram::WatchPurpose::missing);
  return {};
}

void GuestMemory::abandon() noexcept {
  if (!open_) return;
  open_ = false;
  // Never closed in this process, on purpose: see the top.
  if (space_.is_here()) [[maybe_unused]]
    const int kept = userfault_->release();
  userfault_.reset();
}

}  // namespace migrationd::postcopy
