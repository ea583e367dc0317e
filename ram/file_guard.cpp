// SPDX-License-Identifier: Apache-2.0
#include "ram/file_guard.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <chrono>
#include <thread>

namespace migrationd::ram {
namespace {

using namespace std::chrono_literals;

// File times move with the timer tick on most kernels: 10 ms at the slowest (HZ=100). Twice that.
constexpr std::chrono::nanoseconds grain = 20ms;
// For a file that somebody goes on writing.
constexpr int most_looks = 10;

}  // namespace

Result<FileGuard> FileGuard::of(int fd) {
  for (int looks = 0; looks < most_looks; ++looks) {
    MD_TRY(const FileGuard guard, look(fd));
    const std::chrono::nanoseconds now = std::chrono::system_clock::now().time_since_epoch();
    const auto age = now - std::chrono::nanoseconds(guard.modified_ns());
    // A time that lies ahead is another clock's, and of no help.
    if (age < 0ns || age >= grain) return guard;
    std::this_thread::sleep_for(grain - age);
  }
  return wire_error("the file is being written to");
}

Result<FileGuard> FileGuard::look(int fd) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return Error::from_errno("examine the file");
  FileGuard guard;
  guard.size_ = static_cast<std::uint64_t>(about.st_size);
  guard.modified_ = about.st_mtim;
  return guard;
}

Result<void> FileGuard::check(int fd) const {
  MD_TRY(const FileGuard now, look(fd));
  if (now.size_ != size_) {
    return wire_error(
        fmt::format("the file was changed after it was opened: it had {} bytes and has {}", size_, now.size_));
  }
  if (now.modified_.tv_sec != modified_.tv_sec || now.modified_.tv_nsec != modified_.tv_nsec) {
    return wire_error("the file was written to after it was opened");
  }
  return {};
}

}  // namespace migrationd::ram
