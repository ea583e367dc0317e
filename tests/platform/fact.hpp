// SPDX-License-Identifier: Apache-2.0
//
// What the platform tests share. Each program states facts of the kernel that the design rests on
// (docs/architecture.md, "What the kernel really does"); expect() prints each with its outcome. Where the kernel or
// our rights lack something the program says so and exits with 77, which Meson shows as skipped.
#pragma once

#include "ram/ram_map.hpp"
#include "ram/userfaultfd.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

namespace migrationd::platform {

using ram::AddressRange;
using ram::huge_page_size;
using ram::Mapping;
using ram::page_size;
using ram::PagemapScanner;
using ram::RamBlock;
using ram::Userfaultfd;

inline int failures = 0;

inline void expect(bool holds, std::string_view fact) {
  fmt::print("{} {}\n", holds ? "ok      " : "NOT TRUE", fact);
  if (!holds) ++failures;
}

[[noreturn]] inline void skip(std::string_view reason) {
  fmt::print("skipped: {}\n", reason);
  std::fflush(stdout);
  std::_Exit(77);
}

inline int outcome() {
  std::fflush(stdout);
  return failures == 0 ? 0 : 1;
}

// The value, or the test is skipped with the reason.
template <class T>
T need(Result<T> result) {
  if (!result) skip(result.error().text());
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

inline std::unique_ptr<RamBlock> block_of(std::size_t length, std::size_t backing = page_size) {
  return need(RamBlock::create("platform", length, backing));
}
inline Mapping view_of(const RamBlock& block) { return need(Mapping::of_fd(block.fd(), block.length())); }
inline std::uint64_t pages_in(const RamBlock& block) { return need(block.allocated_bytes()) / page_size; }

// Keeps the compiler from dropping a load.
inline std::byte touch(const std::byte* address) { return *static_cast<const volatile std::byte*>(address); }

// A userfaultfd in asynchronous write-protect mode over the mapping.
inline Userfaultfd async_protection(const Mapping& view) {
  auto fault = need(Userfaultfd::open(
      UFFD_FEATURE_PAGEFAULT_FLAG_WP | ram::kernel::feature_wp_hugetlbfs_shmem | ram::kernel::feature_wp_async, true));
  need(fault.register_range({view.data(), view.size()}, UFFDIO_REGISTER_MODE_WP));
  return fault;
}

inline std::uint64_t written_pages(PagemapScanner& scanner, AddressRange range) {
  std::uint64_t bytes = 0;
  need(scanner.fetch_written(range, [&](std::uint64_t, std::uint64_t length) { bytes += length; }));
  return bytes / page_size;
}

inline double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

// VmPTE of this process, bytes.
inline std::uint64_t page_tables() {
  std::FILE* const file = std::fopen("/proc/self/status", "re");
  char line[256];
  std::uint64_t kib = 0;
  while (file != nullptr && std::fgets(line, sizeof line, file) != nullptr)
    if (std::strncmp(line, "VmPTE:", 6) == 0) kib = std::strtoull(line + 6, nullptr, 10);
  if (file != nullptr) std::fclose(file);
  return kib * 1024;
}

}  // namespace migrationd::platform
