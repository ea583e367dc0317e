// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/file_access.hpp"

#include "base/read_at.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>

namespace migrationd::ctl {

namespace {

constexpr std::size_t shown = 4096;

Error file_error(const char* what, const std::string& path, int err = errno) {
  return Error::from_errno(fmt::format("{} '{}'", what, printable(path, shown)), err);
}

// O_NONBLOCK in the open passes over pipes without a wait.
Result<UniqueFd> open_file(const std::string& path, int flags, const char* what) {
  constexpr mode_t mode = 0600;
  UniqueFd fd(::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, mode));
  if (!fd) return file_error(what, path);
  struct stat about {};
  if (::fstat(fd.get(), &about) != 0) return file_error(what, path);
  if (S_ISDIR(about.st_mode)) return file_error(what, path, EISDIR);
  if (!S_ISREG(about.st_mode) && !S_ISBLK(about.st_mode)) {
    return plan_error(
        fmt::format("{} '{}': it is neither a regular file nor a block device", what, printable(path, shown)));
  }
  return fd;
}

}  // namespace

Result<UniqueFd> open_for_reading(const std::string& path) { return open_file(path, O_RDONLY, "Could not open"); }

Result<UniqueFd> create_for_writing(const std::string& path) {
  MD_TRY(UniqueFd fd, open_file(path, O_RDWR | O_CREAT, "Could not create"));
  struct stat about {};
  if (::fstat(fd.get(), &about) != 0) return file_error("Could not create", path);
  if (S_ISREG(about.st_mode) && ::ftruncate(fd.get(), 0) != 0) return file_error("Could not empty", path);
  return fd;
}

Result<std::uint64_t> size_of(int fd) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return Error::from_errno("examine the file");
  if (!S_ISBLK(about.st_mode)) return static_cast<std::uint64_t>(about.st_size);
  std::uint64_t bytes = 0;
  if (::ioctl(fd, BLKGETSIZE64, &bytes) != 0) return Error::from_errno("examine the block device");
  return bytes;
}

stream::ReadAt reading(int fd) {
  return [fd](std::uint64_t offset, std::span<std::byte> into) { return read_at(fd, offset, into); };
}

Result<void> write_at(int fd, std::uint64_t offset, ByteView bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return Error::from_errno(fmt::format("write at {}", hex(offset)), put == 0 ? ENOSPC : errno);
    offset += static_cast<std::uint64_t>(put);
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
  return {};
}

Result<void> make_durable(int fd, const std::string& path) {
  if (::fsync(fd) != 0) return file_error("Could not sync", path);
  const std::string parent = std::filesystem::path(path).parent_path();
  const UniqueFd directory(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // A directory we may write but not read cannot be synced; the file itself is.
  if (directory && ::fsync(directory.get()) != 0) return file_error("Could not sync the directory of", path);
  return {};
}

Result<std::string> read_text(const std::string& path, std::size_t limit) {
  MD_TRY(const UniqueFd fd, open_for_reading(path));
  MD_TRY(const std::uint64_t size, size_of(fd.get()));
  if (size > limit) {
    return plan_error(fmt::format("'{}' has {} bytes, at most {} are taken", printable(path, shown), size, limit));
  }
  std::string text(size, '\0');
  MD_TRY(const std::size_t got, reading(fd.get())(0, std::as_writable_bytes(std::span(text.data(), text.size()))));
  text.resize(got);
  return text;
}

Result<OpenedImage> open_image(const std::string& path) {
  OpenedImage out;
  out.path = path;
  MD_TRY(out.fd, open_for_reading(path));
  MD_TRY(out.size, size_of(out.fd.get()));
  MD_TRY(out.image, stream::recognise_image(reading(out.fd.get())));
  return out;
}

}  // namespace migrationd::ctl
