// SPDX-License-Identifier: Apache-2.0
//
// FdSource: where transports get descriptors that a client passed or the process inherited (qmp.md section 7).
// Implemented by daemon/control (named descriptors and sets); transports know only this contract.
// Thread: control.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <string_view>

namespace migrationd::transports {

class FdSource {
 public:
  virtual ~FdSource() = default;
  // The descriptor named by getfd; the name is gone afterwards.
  // Error: "File descriptor named 'x' has not been found".
  virtual Result<UniqueFd> take_named(std::string_view name) = 0;
  // A duplicate of the member of /dev/fdset/N whose access mode and O_DIRECT flag equal those of `flags`.
  // Errors: "Failed to find fdset /dev/fdset/77", "Failed to find file descriptor with matching flags=0x41".
  virtual Result<UniqueFd> open_fdset(std::string_view path, int flags) = 0;
  // Whether /dev/fdset/N holds what a mapped-ram file needs, and nothing else. Two members are of the same file and of
  // two open() calls, and open for `mode` (O_WRONLY, O_RDONLY) alone. With `direct` there are exactly two, one with
  // O_DIRECT; without, one or two, none with O_DIRECT. Ask after open_fdset: what is missing has QEMU's texts, what is
  // too much has ours.
  virtual Result<void> check_mapped_fdset(std::string_view path, int mode, bool direct) = 0;
};

}  // namespace migrationd::transports
