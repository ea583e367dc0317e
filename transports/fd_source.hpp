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
};

}  // namespace migrationd::transports
