// SPDX-License-Identifier: Apache-2.0
//
// The few kernel interfaces dirty logs need, as values: userfaultfd (write protection) and PAGEMAP_SCAN.
//
// Debian 12 builds with Linux 6.1's headers, which lack what 6.4 and 6.7 added, so those numbers stand here.
// They are the kernel's ABI (Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst).
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <linux/ioctl.h>
#include <linux/userfaultfd.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace migrationd::ram {

namespace kernel {

inline constexpr std::uint64_t feature_wp_hugetlbfs_shmem = std::uint64_t{1} << 12;  // Linux 5.19
inline constexpr std::uint64_t feature_wp_async = std::uint64_t{1} << 15;            // Linux 6.7
inline constexpr std::uint64_t feature_minor_hugetlbfs = std::uint64_t{1} << 9;      // Linux 5.13
inline constexpr unsigned long new_userfaultfd = _IO(0xAA, 0x00);                    // on /dev/userfaultfd, Linux 6.1

struct PageRegion {
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t categories;
};

struct ScanArguments {
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start;
  std::uint64_t end;
  std::uint64_t walk_end;
  std::uint64_t regions;
  std::uint64_t region_count;
  std::uint64_t max_pages;
  std::uint64_t category_inverted;
  std::uint64_t category_mask;
  std::uint64_t category_anyof_mask;
  std::uint64_t return_mask;
};
static_assert(sizeof(ScanArguments) == 96);

inline constexpr std::uint64_t page_is_written = std::uint64_t{1} << 1;
inline constexpr std::uint64_t scan_protect_matching = std::uint64_t{1} << 0;
inline constexpr std::uint64_t scan_check_async = std::uint64_t{1} << 1;
inline constexpr unsigned long pagemap_scan = _IOWR('f', 16, ScanArguments);

}  // namespace kernel

// A range of one address space, page-aligned.
struct AddressRange {
  std::byte* start = nullptr;
  std::uint64_t length = 0;
};

// An open userfaultfd after its handshake. One purpose each: an area has one userfaultfd, and features are fixed at
// the handshake (docs/architecture.md section 13). Thread: any; the kernel serialises.
class Userfaultfd {
 public:
  // `user_mode_only_suffices`: accept a descriptor that does not catch faults of the kernel.
  static Result<Userfaultfd> open(std::uint64_t features, bool user_mode_only_suffices);
  // One that another process made and shook hands with. Refuses a descriptor that is no userfaultfd.
  static Result<Userfaultfd> adopt(UniqueFd fd);

  Result<void> register_range(AddressRange range, std::uint64_t mode) const;
  // Clears the protection of the range too. It does not wake waiters of write-protect mode: lift first.
  Result<void> unregister_range(AddressRange range) const;
  // Sets or lifts write protection; lifting wakes the waiters of the range.
  Result<void> write_protect(AddressRange range, bool on) const;
  // UFFDIO_CONTINUE without waking: true if the file holds the page at `page` (now mapped there), false for a hole.
  Result<bool> map_existing(std::byte* page, std::uint64_t length) const;
  int fd() const noexcept { return fd_.get(); }
  // Gives the descriptor up without closing it: whoever waits goes on waiting until the process ends.
  int release() noexcept { return fd_.release(); }

 private:
  explicit Userfaultfd(UniqueFd fd) noexcept : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

// The events that wait at a userfaultfd, as many as fit; 0: none now. Never blocks on kernels since 6.10, whatever the
// flags of a descriptor that another process may change; before, on descriptors that are non-blocking.
std::size_t read_userfaults(int fd, std::span<uffd_msg> events) noexcept;

// PAGEMAP_SCAN of one address space.
class PagemapScanner {
 public:
  // This process's.
  static Result<PagemapScanner> open();
  // That of the process which opened `fd`. Refuses a descriptor that is no page map.
  static Result<PagemapScanner> adopt(UniqueFd fd);
  // Protects every page of `range` written since it was last protected (a page never protected counts as
  // written), and reports none of them.
  Result<void> protect(AddressRange range) const;
  // Finds the pages of `range` written since they were protected, protects them again and calls
  // report(byte offset in the range, length) for each run.
  template <class Report>
  Result<void> fetch_written(AddressRange range, Report report) {
    std::uint64_t done = 0;
    while (done < range.length) {
      MD_TRY(const Batch batch, scan(AddressRange{range.start + done, range.length - done}, true));
      for (const kernel::PageRegion& region : std::span(regions_.data(), batch.regions))
        report(region.start - reinterpret_cast<std::uint64_t>(range.start), region.end - region.start);
      done += batch.walked;
    }
    return {};
  }

 private:
  struct Batch {
    std::uint64_t walked;
    std::size_t regions;
  };
  explicit PagemapScanner(UniqueFd fd) : fd_(std::move(fd)), regions_(region_capacity) {}
  // One call: stops early where the list is full; `walked` says how far it came.
  Result<Batch> scan(AddressRange range, bool list) const;

  // 96 KiB of results: large enough that a call's fixed cost vanishes, small enough to stay in the L2 cache.
  static constexpr std::size_t region_capacity = 4096;
  UniqueFd fd_;
  mutable std::vector<kernel::PageRegion> regions_;
};

}  // namespace migrationd::ram
