// SPDX-License-Identifier: Apache-2.0
//
// FileGuard: has the file changed since it was opened? Asked behind every read of a page that is taken from it lazily:
// the answer must be the page that was there when the machine was opened, or none.
//
// Size and time of modification are compared. A page that was read before a change is right; a writer that changes
// bytes and sets the clock back is not found out, as with every program that trusts its files' times.
// Thread: any.
#pragma once

#include "base/result.hpp"

#include <cstdint>
#include <ctime>

namespace migrationd::ram {

class FileGuard {
 public:
  // `fd` stays the caller's; any descriptor of the same file will do for check().
  static Result<FileGuard> of(int fd);

  // Error: ErrorKind::wire, what changed.
  Result<void> check(int fd) const;
  std::uint64_t size() const noexcept { return size_; }
  // Nanoseconds since the epoch.
  std::int64_t modified_ns() const noexcept {
    return modified_.tv_sec * std::int64_t{1'000'000'000} + modified_.tv_nsec;
  }

 private:
  std::uint64_t size_ = 0;
  timespec modified_{};
};

}  // namespace migrationd::ram
