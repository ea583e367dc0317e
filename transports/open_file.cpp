// SPDX-License-Identifier: Apache-2.0
#include "transports/open_file.hpp"

#include "transports/descriptor_channel.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <filesystem>

namespace migrationd::transports {

namespace {

constexpr int safe_flags = O_CLOEXEC | O_NONBLOCK | O_NOCTTY;  // no wait for a pipe's other end, no terminal

bool is_fdset(const std::string& path) { return path.starts_with("/dev/fdset/"); }

Error file_error(const char* what, const std::string& path, int err) {
  return Error::from_errno(fmt::format("{} '{}'", what, printable(path, printable_address_bytes)), err);
}

Result<void> require_file(int fd, const char* what, const std::string& path) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return file_error(what, path, errno);
  if (S_ISDIR(about.st_mode)) return file_error(what, path, EISDIR);
  if (!S_ISREG(about.st_mode) && !S_ISBLK(about.st_mode))
    return plan_error(fmt::format("{} '{}': it is neither a regular file nor a block device (fd: and exec: take pipes)",
                                  what, printable(path, printable_address_bytes)));
  // It was asked for to pass over pipes only; the description is ours alone.
  ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  return {};
}

Result<CreatedFile> create_path(const std::string& path) {
  constexpr mode_t mode = 0600;
  CreatedFile out;
  // First as a new file, only to learn whether it was there before.
  out.fd.reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | safe_flags, mode));
  const bool made = static_cast<bool>(out.fd);
  if (!made) out.fd.reset(::open(path.c_str(), O_WRONLY | O_CREAT | safe_flags, mode));
  if (!out.fd) return file_error("Could not create", path, errno);
  MD_CHECK(require_file(out.fd.get(), "Could not create", path));
  if (made) {
    const std::string parent = std::filesystem::path(path).parent_path();
    // A directory we may write but not read cannot be synced; the file itself still is.
    out.directory.reset(::open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
  return out;
}

Result<void> move_to(int fd, const FileAddress& file) {
  if (file.offset == 0) return {};  // a descriptor from a set starts where it stands
  if (::lseek(fd, static_cast<off_t>(file.offset), SEEK_SET) < 0)
    return file_error(fmt::format("Unable to seek to offset {} in", hex(file.offset)).c_str(), file.path, errno);
  return {};
}

Result<void> cut_to(int fd, const FileAddress& file) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return file_error("Could not create", file.path, errno);
  if (!S_ISREG(about.st_mode)) return {};  // a block device has its size
  if (::ftruncate(fd, static_cast<off_t>(file.offset)) != 0)
    return file_error(fmt::format("Unable to truncate to offset {} the file", hex(file.offset)).c_str(), file.path,
                      errno);
  return {};
}

// The descriptor for page data, of the file that `fd` has open.
Result<UniqueFd> open_pages(int fd, int mode, PageAccess access, const FileAddress& file, FdSource& descriptors) {
  if (access == PageAccess::none) return UniqueFd();
  UniqueFd member;
  if (is_fdset(file.path)) {
    const bool direct = access == PageAccess::direct;
    if (direct) {
      MD_TRY(member, descriptors.open_fdset(file.path, mode | O_DIRECT));
    }
    MD_CHECK(descriptors.check_mapped_fdset(file.path, mode, direct));
  }
  if (member) return member;
  if (access == PageAccess::cached) {
    // Used at offsets only, so the shared position does not matter.
    UniqueFd same(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!same) return file_error("Could not open", file.path, errno);
    return same;
  }
  // By the descriptor, not by the name: it is the same file whatever happens to the name.
  UniqueFd pages(::open(fmt::format("/proc/self/fd/{}", fd).c_str(), mode | O_DIRECT | O_CLOEXEC));
  if (pages) return pages;
  if (errno != EINVAL) return file_error("Could not open", file.path, errno);
  return plan_error(fmt::format("Could not open '{}': filesystem does not support O_DIRECT",
                                printable(file.path, printable_address_bytes)));
}

}  // namespace

Result<CreatedFile> create_file(const FileAddress& file, FdSource& descriptors, PageAccess pages) {
  CreatedFile out;
  if (is_fdset(file.path)) {
    MD_TRY(out.fd, descriptors.open_fdset(file.path, O_WRONLY | O_CREAT));
    MD_CHECK(kind_of(out.fd.get()));
  } else {
    MD_TRY(out, create_path(file.path));
  }
  // Before anything is cut: what cannot be written as wanted is not touched.
  MD_TRY(out.pages, open_pages(out.fd.get(), O_WRONLY, pages, file, descriptors));
  MD_CHECK(cut_to(out.fd.get(), file));
  MD_CHECK(move_to(out.fd.get(), file));
  return out;
}

Result<OpenedFile> open_file(const FileAddress& file, FdSource& descriptors, PageAccess pages) {
  OpenedFile out;
  if (is_fdset(file.path)) {
    MD_TRY(out.fd, descriptors.open_fdset(file.path, O_RDONLY));
    MD_CHECK(kind_of(out.fd.get()));
  } else {
    out.fd.reset(::open(file.path.c_str(), O_RDONLY | safe_flags));
    if (!out.fd) return file_error("Could not open", file.path, errno);
    MD_CHECK(require_file(out.fd.get(), "Could not open", file.path));
  }
  MD_TRY(out.pages, open_pages(out.fd.get(), O_RDONLY, pages, file, descriptors));
  MD_CHECK(move_to(out.fd.get(), file));
  return out;
}

}  // namespace migrationd::transports
