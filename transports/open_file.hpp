// SPDX-License-Identifier: Apache-2.0
//
// Opening what file: names (file-and-channels.md 1 and 4.3): a path, or a member of a descriptor set.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "transports/address.hpp"
#include "transports/fd_source.hpp"

#include <cstdint>

namespace migrationd::transports {

// Whether a second descriptor is wanted for page data (mapped-ram), and how its I/O goes.
enum class PageAccess : std::uint8_t { none, cached, direct };

struct OpenedFile {
  UniqueFd fd;
  UniqueFd pages;
};
struct CreatedFile {
  UniqueFd fd;
  UniqueFd pages;
  UniqueFd directory;  // set when the file did not exist before: its entry must be made durable too
};

// For writing, mode 0600. Cut or grown to the offset, never cut before it; positioned there unless it is 0.
// Error: "Could not create 'NAME': No such file or directory". Waits for no pipe's other end: what is neither a
// regular file nor a block device is refused. Pages with direct I/O: of a set, its member that was opened with
// O_DIRECT; of a path, opened anew. Error: "Could not open 'NAME': filesystem does not support O_DIRECT".
Result<CreatedFile> create_file(const FileAddress& file, FdSource& descriptors, PageAccess pages = PageAccess::none);
// For reading, positioned at the offset unless it is 0. Error: "Could not open 'NAME': ...".
Result<OpenedFile> open_file(const FileAddress& file, FdSource& descriptors, PageAccess pages = PageAccess::none);

}  // namespace migrationd::transports
