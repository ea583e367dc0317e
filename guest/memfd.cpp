// SPDX-License-Identifier: Apache-2.0
#include "guest/memfd.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <memory>

namespace migrationd::guest {

namespace {

constexpr std::uint32_t huge_page = 2097152;
constexpr int length_seals = F_SEAL_SHRINK | F_SEAL_GROW;
// "memfd:" is put in front by the kernel.
constexpr std::size_t memfd_name_bytes = 200;

Result<int> seals_of(int fd) {
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return Error::from_errno("is no memfd");
  return seals;
}

struct MapsLine {
  std::uintptr_t start = 0;
  std::uintptr_t end = 0;
  char access[8] = {};
  std::uint64_t offset = 0;
  unsigned device_major = 0;
  unsigned device_minor = 0;
  std::uint64_t inode = 0;
};

bool parse_line(const char* text, MapsLine& out) {
  return std::sscanf(text, "%" SCNxPTR "-%" SCNxPTR " %7s %" SCNx64 " %x:%x %" SCNu64, &out.start, &out.end, out.access,
                     &out.offset, &out.device_major, &out.device_minor, &out.inode) == 7;
}

Error no_such_mapping(const std::string& why) {
  return machine_error(fmt::format("the memfd is not mapped there as a whole, shared and writable: {}", why));
}

}  // namespace

Result<UniqueFd> make_memory(const std::string& name, std::uint64_t length, std::uint32_t page_size) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (page_size == huge_page) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  UniqueFd fd(::memfd_create(name.substr(0, memfd_name_bytes).c_str(), flags));
  if (!fd) return Error::from_errno("make a memfd");
  if (::ftruncate(fd.get(), static_cast<off_t>(length)) != 0) {
    return Error::from_errno(fmt::format("make a memfd of {} bytes", length));
  }
  if (::fcntl(fd.get(), F_ADD_SEALS, length_seals) != 0) return Error::from_errno("seal a memfd");
  return fd;
}

Result<std::byte*> map_memory(int fd, std::uint64_t length, const std::string& name) {
  void* const address = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return Error::from_errno(fmt::format("map {} bytes for '{}'", length, name));
  return static_cast<std::byte*>(address);
}

Result<std::uint32_t> prove_memory(int fd, std::uint64_t length) {
  MD_TRY(const int seals, seals_of(fd));
  if ((seals & F_SEAL_SHRINK) == 0) return machine_error("the memfd is not sealed with F_SEAL_SHRINK");
  struct stat facts {};
  if (::fstat(fd, &facts) != 0) return Error::from_errno("look at the memfd");
  if (static_cast<std::uint64_t>(facts.st_size) != length) {
    return machine_error(fmt::format("the memfd has {} bytes, not {}", facts.st_size, length));
  }
  const auto page = static_cast<std::uint64_t>(facts.st_blksize);  // hugetlbfs says its page size here
  if (page != 4096 && page != huge_page) {
    return machine_error(fmt::format("the memfd has pages of {} bytes, neither 4096 nor 2097152", page));
  }
  return static_cast<std::uint32_t>(page);
}

Result<void> prove_mapping(const void* address, std::uint64_t length, int fd) {
  struct stat facts {};
  if (::fstat(fd, &facts) != 0) return Error::from_errno("look at the memfd");
  const auto close_file = [](std::FILE* file) { std::fclose(file); };
  const std::unique_ptr<std::FILE, decltype(close_file)> maps(std::fopen("/proc/self/maps", "re"), close_file);
  if (!maps) return Error::from_errno("read /proc/self/maps");
  const auto start = reinterpret_cast<std::uintptr_t>(address);
  std::uint64_t proved = 0;
  char text[4096 + 256];
  while (proved < length && std::fgets(text, sizeof text, maps.get()) != nullptr) {
    MapsLine line;
    if (!parse_line(text, line) || line.end <= start + proved) continue;
    if (line.start > start + proved) break;
    if (line.inode != facts.st_ino || makedev(line.device_major, line.device_minor) != facts.st_dev) {
      return no_such_mapping(fmt::format("{:#x} belongs to something else", start + proved));
    }
    if (line.access[1] != 'w' || line.access[3] != 's') {
      return no_such_mapping(fmt::format("{:#x} has the access {}", start + proved, line.access));
    }
    if (line.offset + (start + proved - line.start) != proved) {
      return no_such_mapping(fmt::format("{:#x} is another part of it", start + proved));
    }
    proved = line.end - start;
  }
  if (proved < length) return no_such_mapping(fmt::format("nothing is at {:#x}", start + proved));
  return {};
}

}  // namespace migrationd::guest
