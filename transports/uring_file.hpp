// SPDX-License-Identifier: Apache-2.0
//
// UringFile: the PositionalFile on io_uring. The file is registered; entries are handed to the kernel in groups, at the
// latest when the owner waits or when enough bytes stand ready to keep a disk busy.
//
// A kernel that has no io_uring, or a sandbox that forbids it (kernel.io_uring_disabled, a seccomp filter such as
// systemd's @io-event exclusion), is no error: make() gives nothing, and the caller takes the plain file.
#pragma once

#include "transports/positional_file.hpp"

#include <memory>

namespace migrationd::transports {

enum class FileOperation : std::uint8_t { read, write };

// The errors of both implementations.
Error transfer_error(FileOperation operation, std::uint64_t offset, int err);
Error short_file_error(std::uint64_t offset, std::size_t missing);

class UringFile {
 public:
  // Takes `fd` on success only. depth: 1 to 1024.
  static std::unique_ptr<PositionalFile> make(UniqueFd& fd, std::size_t alignment, std::size_t depth);
};

}  // namespace migrationd::transports
