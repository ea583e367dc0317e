// SPDX-License-Identifier: Apache-2.0
#include "guest/watches.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

namespace migrationd::guest {

namespace {

// On /dev/userfaultfd, Linux 6.1; Debian 12's headers are older.
constexpr unsigned long new_userfaultfd = _IO(0xAA, 0x00);
constexpr int open_flags = O_CLOEXEC | O_NONBLOCK;

Result<UniqueFd> open_userfaultfd(const UniqueFd& passed, Purpose purpose) {
  if (passed) {
    UniqueFd fd(::ioctl(passed.get(), new_userfaultfd, open_flags));
    if (fd) return fd;
  }
  const UniqueFd device(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
  if (device) {
    UniqueFd fd(::ioctl(device.get(), new_userfaultfd, open_flags));
    if (fd) return fd;
  }
  UniqueFd fd(static_cast<int>(::syscall(SYS_userfaultfd, open_flags)));
  // Asynchronous write protection is resolved by the kernel itself, also where the fault was the kernel's.
  if (!fd && errno == EPERM && purpose == Purpose::protect_async) {
    fd.reset(static_cast<int>(::syscall(SYS_userfaultfd, open_flags | UFFD_USER_MODE_ONLY)));
  }
  if (!fd) {
    return Error::from_errno(
        "open a userfaultfd (it takes access to /dev/userfaultfd, here or by the daemon, or CAP_SYS_PTRACE, or sysctl "
        "vm.unprivileged_userfaultfd=1)");
  }
  return fd;
}

const char* word_of(Purpose purpose) noexcept {
  switch (purpose) {
    case Purpose::protect_async:
      return "asynchronous write protection";
    case Purpose::protect_sync:
      return "write protection";
    case Purpose::missing:
      return "missing pages";
  }
  return "nothing";
}

}  // namespace

Result<int> Watches::open(Purpose purpose, std::uint64_t features) {
  if (slot(purpose)) return machine_error(fmt::format("a watch for {} is open already", word_of(purpose)));
  MD_TRY(UniqueFd fd, open_userfaultfd(device_, purpose));
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  if (::ioctl(fd.get(), UFFDIO_API, &api) != 0) {
    return Error::from_errno(fmt::format("this kernel's userfaultfd lacks features {}", hex(features)));
  }
  slot(purpose) = std::move(fd);
  return slot(purpose).get();
}

Result<void> Watches::close(Purpose purpose) {
  if (!slot(purpose)) return machine_error(fmt::format("no watch for {} is open", word_of(purpose)));
  slot(purpose).reset();
  return {};
}

void Watches::daemon_gone(std::span<const Block> blocks) noexcept {
  device_.reset();
  slot(Purpose::protect_async).reset();
  UniqueFd& sync = slot(Purpose::protect_sync);
  // Somebody may hold the daemon's duplicate still, so that closing ours would not be the last.
  for (const Block& block : blocks) {
    if (!sync) break;
    uffdio_writeprotect request{};
    request.range = {reinterpret_cast<std::uintptr_t>(block.address), block.length};
    while (::ioctl(sync.get(), UFFDIO_WRITEPROTECT, &request) != 0 && errno == EAGAIN) {
    }
  }
  sync.reset();
  if (slot(Purpose::missing)) lost_pages_ = std::move(slot(Purpose::missing));
}

Watches::~Watches() {
  static_cast<void>(slot(Purpose::missing).release());
  static_cast<void>(lost_pages_.release());
}

}  // namespace migrationd::guest
