// SPDX-License-Identifier: Apache-2.0
//
// Files as the commands that need no daemon see them: opened, recognised, and made durable.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "protocol/stream/image_kind.hpp"

#include <cstdint>
#include <string>

namespace migrationd::ctl {

// For reading. Error: "Could not open 'NAME': ...", also for what is no regular file and no block device.
Result<UniqueFd> open_for_reading(const std::string& path);
// A new file or an old one cut to nothing, mode 0600, for writing and reading.
Result<UniqueFd> create_for_writing(const std::string& path);
Result<std::uint64_t> size_of(int fd);

// pread as recognise_image() wants it. The descriptor stays open as long as it is used.
stream::ReadAt reading(int fd);
// All of it, or an error with the offset.
Result<void> write_at(int fd, std::uint64_t offset, ByteView bytes);
// The data, then the directory's entry.
Result<void> make_durable(int fd, const std::string& path);
// A whole small file as text. Error: it is larger than `limit`.
Result<std::string> read_text(const std::string& path, std::size_t limit);

// A file of any kind, opened and looked at; an incomplete or unknown one too.
struct OpenedImage {
  std::string path;
  UniqueFd fd;
  std::uint64_t size = 0;
  stream::Image image;
};
Result<OpenedImage> open_image(const std::string& path);

}  // namespace migrationd::ctl
