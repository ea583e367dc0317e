// SPDX-License-Identifier: Apache-2.0
//
// FileGuard: has the file changed since it was opened? Asked behind every read of a page that is taken from it lazily:
// the answer must be the page that was there when the machine was opened, or none.
//
// Size and time of modification are compared. A page that was read before a change is right. Not found out are a writer
// that sets the time back, as by every program that trusts its files' times, and one that had the page mapped and dirty
// before. The time of the last change of the inode would tell of the first; but it moves with a rename, a link, a new
// mode, and an unlink, too, which do the pages no harm and which nothing could mend.
// Thread: any.
#pragma once

#include "base/result.hpp"

#include <cstdint>
#include <ctime>

namespace migrationd::ram {

class FileGuard {
 public:
  // `fd` stays the caller's; any descriptor of the same file will do for check(). Waits for some milliseconds when the
  // file was written just now: times have a grain, and a second write within it would not be seen. Error:
  // ErrorKind::wire, it is still being written.
  static Result<FileGuard> of(int fd);

  // Error: ErrorKind::wire, what changed.
  Result<void> check(int fd) const;
  std::uint64_t size() const noexcept { return size_; }
  // Nanoseconds since the epoch.
  std::int64_t modified_ns() const noexcept {
    return modified_.tv_sec * std::int64_t{1'000'000'000} + modified_.tv_nsec;
  }

 private:
  static Result<FileGuard> look(int fd);

  std::uint64_t size_ = 0;
  timespec modified_{};
};

}  // namespace migrationd::ram
