// SPDX-License-Identifier: Apache-2.0
#include "ram/file_guard.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

namespace migrationd::ram {

Result<FileGuard> FileGuard::of(int fd) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return Error::from_errno("examine the file");
  FileGuard guard;
  guard.size_ = static_cast<std::uint64_t>(about.st_size);
  guard.modified_ = about.st_mtim;
  return guard;
}

Result<void> FileGuard::check(int fd) const {
  MD_TRY(const FileGuard now, of(fd));
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
