// SPDX-License-Identifier: Apache-2.0
#include "guest/watches.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

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
  const std::lock_guard<std::mutex> lock(lock_);
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
  const std::lock_guard<std::mutex> lock(lock_);
  if (!slot(purpose)) return machine_error(fmt::format("no watch for {} is open", word_of(purpose)));
  slot(purpose).reset();
  return {};
}

void Watches::daemon_gone(std::span<const Block> blocks) noexcept {
  const std::lock_guard<std::mutex> lock(lock_);
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

void Watches::leave() noexcept {
  device_.reset();
  for (UniqueFd& open : open_) open.reset();
  lost_pages_.reset();
}

bool Watches::has_lost_pages() const noexcept {
  const std::lock_guard<std::mutex> lock(lock_);
  return static_cast<bool>(lost_pages_);
}

// Each page is filled as the daemon would fill it, so that what comes later finds it there; one that is there already
// is written over, and waits for nobody.
Result<bool> Watches::put_zeros(const Block& block, std::uint64_t offset, std::uint64_t length) {
  const std::lock_guard<std::mutex> lock(lock_);
  const UniqueFd& missing = slot(Purpose::missing) ? slot(Purpose::missing) : lost_pages_;
  if (!missing) return false;
  const std::vector<std::byte> zeros(block.page_size);
  for (std::uint64_t at = offset; at < offset + length; at += block.page_size) {
    std::byte* const page = block.address + at;
    uffdio_copy request{};
    request.dst = reinterpret_cast<std::uintptr_t>(page);
    request.src = reinterpret_cast<std::uintptr_t>(zeros.data());
    request.len = block.page_size;
    int failure = 0;
    do {
      request.copy = 0;
      failure = ::ioctl(missing.get(), UFFDIO_COPY, &request) == 0 ? 0 : errno;
    } while (failure == EAGAIN);
    if (failure == EEXIST) {
      std::memset(page, 0, block.page_size);
    } else if (failure == ENOENT || failure == EINVAL) {
      return false;  // not registered: nothing comes yet, or everything has come
    } else if (failure != 0) {
      errno = failure;
      return Error::from_errno("put zeros in place of memory that is still to come");
    }
  }
  return true;
}

Watches::~Watches() {
  static_cast<void>(slot(Purpose::missing).release());
  static_cast<void>(lost_pages_.release());
}

}  // namespace migrationd::guest
