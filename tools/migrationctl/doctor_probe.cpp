// SPDX-License-Identifier: Apache-2.0
#include "base/unique_fd.hpp"
#include "tools/migrationctl/doctor.hpp"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <linux/vm_sockets.h>
#include <pwd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>

#include <cstdio>
#include <fstream>
#include <limits>

namespace migrationd::ctl {

namespace {

// Newer than Debian 12's headers; from linux/fs.h and linux/userfaultfd.h of 6.7.
struct PageScan {
  std::uint64_t size = sizeof(PageScan);
  std::uint64_t flags = 0;
  std::uint64_t start = 0;
  std::uint64_t end = 0;
  std::uint64_t walk_end = 0;
  std::uint64_t regions = 0;
  std::uint64_t region_count = 0;
  std::uint64_t max_pages = 0;
  std::uint64_t category_inverted = 0;
  std::uint64_t category_mask = 0;
  std::uint64_t category_anyof_mask = 0;
  std::uint64_t return_mask = 0;
};
static_assert(sizeof(PageScan) == 96);
constexpr unsigned long pagemap_scan_request = _IOWR('f', 16, PageScan);
constexpr unsigned long userfaultfd_new_request = _IO(0xAA, 0x00);

std::optional<std::uint64_t> read_number(const char* path) {
  std::ifstream in(path);
  std::uint64_t value = 0;
  if (in >> value) return value;
  return std::nullopt;
}

void probe_kernel(Facts& facts) {
  utsname name{};
  if (::uname(&name) != 0) return;
  facts.kernel = name.release;
  std::sscanf(name.release, "%d.%d", &facts.kernel_major, &facts.kernel_minor);
  const passwd* user = ::getpwuid(::geteuid());
  facts.user = user != nullptr ? user->pw_name : std::to_string(::geteuid());
}

void probe_userfaultfd(Facts& facts) {
  facts.uffd_device_exists = ::access("/dev/userfaultfd", F_OK) == 0;
  UniqueFd fault_fd;
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  // A container may have covered it by something else that opens.
  if (device) fault_fd.reset(::ioctl(device.get(), userfaultfd_new_request, O_CLOEXEC | O_NONBLOCK));
  facts.uffd_device_opens = static_cast<bool>(fault_fd);
  UniqueFd by_call(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  facts.uffd_syscall_works = static_cast<bool>(by_call);
  if (!fault_fd) fault_fd = std::move(by_call);
  // A handshake without wishes answers with everything the kernel has.
  uffdio_api api{};
  api.api = UFFD_API;
  if (fault_fd && ::ioctl(fault_fd.get(), UFFDIO_API, &api) == 0) facts.uffd_features = api.features;
}

void probe_pagemap(Facts& facts) {
  const UniqueFd pagemap(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  void* const memory = ::mmap(nullptr, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!pagemap || memory == MAP_FAILED) return;
  PageScan scan;
  scan.start = reinterpret_cast<std::uintptr_t>(memory);
  scan.end = scan.start + page;
  facts.pagemap_scan = ::ioctl(pagemap.get(), pagemap_scan_request, &scan) >= 0;
  ::munmap(memory, page);
}

void probe_io_uring(Facts& facts) {
  // struct io_uring_params, 120 bytes, all zero: the defaults.
  alignas(8) unsigned char parameters[120] = {};
  const UniqueFd ring(static_cast<int>(::syscall(SYS_io_uring_setup, 1, parameters)));
  facts.io_uring = static_cast<bool>(ring);
}

void probe_vsock(Facts& facts) {
  const UniqueFd socket(::socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0));
  facts.vsock = static_cast<bool>(socket);
  sockaddr_vm local{};
  local.svm_family = AF_VSOCK;
  local.svm_cid = VMADDR_CID_LOCAL;
  local.svm_port = VMADDR_PORT_ANY;
  facts.vsock_loopback = socket && ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&local), sizeof local) == 0;
}

void probe_limits(Facts& facts) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_MEMLOCK, &limit) == 0) facts.memlock_bytes = limit.rlim_cur;
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) facts.open_files = limit.rlim_cur;
}

void probe_memory(Facts& facts) {
  std::ifstream in("/proc/meminfo");
  std::string name;
  std::string rest;
  std::uint64_t kib = 0;
  while (in >> name >> kib && std::getline(in, rest)) {
    if (name == "MemTotal:") facts.memory_total = kib * 1024;
    if (name == "MemAvailable:") facts.memory_available = kib * 1024;
  }
  struct sysinfo about {};
  // A sandbox may hide /proc/meminfo; free memory is then a lower bound of what is available.
  if (facts.memory_total == 0 && ::sysinfo(&about) == 0) {
    facts.memory_total = about.totalram * about.mem_unit;
    facts.memory_available = about.freeram * about.mem_unit;
  }
  facts.huge_pages_total = read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
  facts.huge_pages_free = read_number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").value_or(0);
  const UniqueFd memfd(::memfd_create("migrationctl-doctor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  facts.memfd = static_cast<bool>(memfd);
}

}  // namespace

Facts probe() {
  Facts facts;
  probe_kernel(facts);
  probe_userfaultfd(facts);
  probe_pagemap(facts);
  probe_io_uring(facts);
  probe_vsock(facts);
  probe_limits(facts);
  probe_memory(facts);
  return facts;
}

}  // namespace migrationd::ctl
