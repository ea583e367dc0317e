// SPDX-License-Identifier: Apache-2.0
//
// Opening what file: names (file-and-channels.md 1 and 4.3): a path, or a member of a descriptor set.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "transports/address.hpp"
#include "transports/fd_source.hpp"

namespace migrationd::transports {

struct CreatedFile {
  UniqueFd fd;
  UniqueFd directory;  // set when the file did not exist before: its entry must be made durable too
};

// For writing, mode 0600. Cut or grown to the offset, never cut before it; positioned there unless it is 0.
// Error: "Could not create 'NAME': No such file or directory". Waits for no pipe's other end: what is neither a
// regular file nor a block device is refused.
Result<CreatedFile> create_file(const FileAddress& file, FdSource& descriptors);
// For reading, positioned at the offset unless it is 0. Error: "Could not open 'NAME': ...".
Result<UniqueFd> open_file(const FileAddress& file, FdSource& descriptors);

}  // namespace migrationd::transports
