// SPDX-License-Identifier: Apache-2.0
#include "ram/userfaultfd.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>
#include <utility>

namespace migrationd::ram {
namespace {

uffdio_range to_kernel(AddressRange range) noexcept {
  return {reinterpret_cast<std::uint64_t>(range.start), range.length};
}

// The device first: its permissions are the administrator's word about who may. The system call second; it asks for
// CAP_SYS_PTRACE or vm.unprivileged_userfaultfd, or for a descriptor restricted to user mode.
Result<UniqueFd> open_descriptor(bool user_mode_only_suffices) {
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device) {
    UniqueFd fd(::ioctl(device.get(), kernel::new_userfaultfd, O_CLOEXEC | O_NONBLOCK));
    if (fd) return fd;
  }
  UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK)));
  if (!fd && errno == EPERM && user_mode_only_suffices)
    fd.reset(static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY)));
  if (!fd)
    return Error::from_errno(
        "open a userfaultfd (it takes access to /dev/userfaultfd, which the packaged unit has by "
        "DeviceAllow=/dev/userfaultfd and tmpfiles.d/migrationd.conf; or sysctl vm.unprivileged_userfaultfd=1; or "
        "CAP_SYS_PTRACE; and the system call in SystemCallFilter)");
  return fd;
}

// What a descriptor is, by the kernel's name for it.
std::string target_of(int fd) {
  std::array<char, 256> target{};
  const ssize_t length = ::readlink(fmt::format("/proc/self/fd/{}", fd).c_str(), target.data(), target.size());
  return length > 0 ? std::string(target.data(), static_cast<std::size_t>(length)) : std::string();
}

}  // namespace

Result<Userfaultfd> Userfaultfd::open(std::uint64_t features, bool user_mode_only_suffices) {
  MD_TRY(UniqueFd fd, open_descriptor(user_mode_only_suffices));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0)
    return Error::from_errno(fmt::format("this kernel's userfaultfd lacks features {}", hex(features)));
  return Userfaultfd(std::move(fd));
}

Result<Userfaultfd> Userfaultfd::adopt(UniqueFd fd) {
  const std::string what = target_of(fd.get());
  if (what != "anon_inode:[userfaultfd]")
    return wire_error(fmt::format("'{}' was given for a userfaultfd", printable(what)));
  // Of the open file description: the other side's reads are as little to block as ours.
  const int flags = ::fcntl(fd.get(), F_GETFL);
  if (flags < 0 || ::fcntl(fd.get(), F_SETFL, flags | O_NONBLOCK) < 0)
    return Error::from_errno("make a userfaultfd non-blocking");
  return Userfaultfd(std::move(fd));
}

std::size_t read_userfaults(int fd, std::span<uffd_msg> events) noexcept {
  iovec piece{events.data(), events.size_bytes()};
  ssize_t got = ::preadv2(fd, &piece, 1, -1, RWF_NOWAIT);
  if (got < 0 && errno == EOPNOTSUPP) got = ::read(fd, piece.iov_base, piece.iov_len);
  return got > 0 ? static_cast<std::size_t>(got) / sizeof(uffd_msg) : 0;
}

Result<void> Userfaultfd::register_range(AddressRange range, std::uint64_t mode) const {
  uffdio_register request{};
  request.range = to_kernel(range);
  request.mode = mode;
  if (::ioctl(fd_.get(), UFFDIO_REGISTER, &request) != 0)
    return Error::from_errno(fmt::format("register {} bytes with userfaultfd", range.length));
  return {};
}

Result<void> Userfaultfd::unregister_range(AddressRange range) const {
  uffdio_range request = to_kernel(range);
  if (::ioctl(fd_.get(), UFFDIO_UNREGISTER, &request) != 0) return Error::from_errno("unregister from userfaultfd");
  return {};
}

Result<void> Userfaultfd::write_protect(AddressRange range, bool on) const {
  uffdio_writeprotect request{};
  request.range = to_kernel(range);
  request.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
  // EAGAIN: the address space changes at the moment (fork, mremap); it ends by itself.
  while (::ioctl(fd_.get(), UFFDIO_WRITEPROTECT, &request) != 0)
    if (errno != EAGAIN) return Error::from_errno(on ? "write-protect guest memory" : "lift write protection");
  return {};
}

Result<bool> Userfaultfd::map_existing(std::byte* page, std::uint64_t length) const {
  uffdio_continue request{};
  request.range = to_kernel({page, length});
  request.mode = UFFDIO_CONTINUE_MODE_DONTWAKE;
  while (::ioctl(fd_.get(), UFFDIO_CONTINUE, &request) != 0) {
    if (errno == EEXIST) return true;
    if (errno == EFAULT) return false;
    if (errno != EAGAIN) return Error::from_errno("ask whether a huge page exists");
  }
  return true;
}

Result<PagemapScanner> PagemapScanner::open() {
  UniqueFd fd(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
  if (!fd) return Error::from_errno("open /proc/self/pagemap");
  return PagemapScanner(std::move(fd));
}

Result<PagemapScanner> PagemapScanner::adopt(UniqueFd fd) {
  struct statfs status {};
  const bool in_proc = ::fstatfs(fd.get(), &status) == 0 && status.f_type == PROC_SUPER_MAGIC;
  const std::string what = target_of(fd.get());
  if (!in_proc || !what.ends_with("/pagemap"))
    return wire_error(fmt::format("'{}' was given for a page map", printable(what)));
  return PagemapScanner(std::move(fd));
}

Result<PagemapScanner::Batch> PagemapScanner::scan(AddressRange range, bool list) const {
  kernel::ScanArguments request{};
  request.size = sizeof request;
  request.flags = kernel::scan_protect_matching | kernel::scan_check_async;
  request.start = reinterpret_cast<std::uint64_t>(range.start);
  request.end = request.start + range.length;
  request.category_mask = kernel::page_is_written;
  // Asked for even where nothing is listed: exactly this pair of masks has a short way in the kernel.
  request.return_mask = kernel::page_is_written;
  if (list) {
    request.regions = reinterpret_cast<std::uint64_t>(regions_.data());
    request.region_count = regions_.size();
  }
  const int found = ::ioctl(fd_.get(), kernel::pagemap_scan, &request);
  if (found < 0) return Error::from_errno("scan the page map for written pages");
  return Batch{request.walk_end - request.start, static_cast<std::size_t>(found)};
}

Result<void> PagemapScanner::protect(AddressRange range) const {
  std::uint64_t done = 0;
  while (done < range.length) {
    MD_TRY(const Batch batch, scan(AddressRange{range.start + done, range.length - done}, false));
    // Without a list nothing stops the walk early; no progress would be a kernel that does not know its ABI.
    if (batch.walked == 0) return machine_error("scan the page map for written pages: no progress");
    done += batch.walked;
  }
  return {};
}

}  // namespace migrationd::ram
