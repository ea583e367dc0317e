// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/working_set_file.hpp"

#include "base/read_at.hpp"
#include "base/unique_fd.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

namespace migrationd::migration {
namespace {

Result<void> write_all(int fd, ByteView bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::write(fd, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return Error::from_errno("write");
    bytes = bytes.subspan(static_cast<std::size_t>(put));
  }
  return {};
}

}  // namespace

Result<std::optional<std::vector<postcopy::PageRange>>> WorkingSetFile::read(
    std::span<const postcopy::BlockShape> blocks) const {
  const UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!file && errno == ENOENT) return std::optional<std::vector<postcopy::PageRange>>();
  struct stat about {};
  if (!file || ::fstat(file.get(), &about) != 0) return Error::from_errno("open");
  if (!S_ISREG(about.st_mode)) return plan_error("not a regular file");
  if (about.st_uid != ::geteuid() && about.st_uid != 0) return plan_error("it belongs to another user");
  const auto size = static_cast<std::uint64_t>(about.st_size);
  if (size > postcopy::most_working_set_bytes) return plan_error(fmt::format("{} bytes are too many", size));
  Bytes bytes(size);
  MD_TRY(const std::size_t got, read_at(file.get(), 0, bytes));
  MD_TRY(auto order, postcopy::decode_working_set(ByteView(bytes).first(got), state_, blocks));
  return std::optional(std::move(order));
}

Result<void> WorkingSetFile::write(std::span<const postcopy::BlockShape> blocks,
                                   std::span<const postcopy::PageRange> order) const {
  std::string part = path_ + ".XXXXXX";
  const UniqueFd file(::mkostemp(part.data(), O_CLOEXEC));
  if (!file) return Error::from_errno("make it");
  auto written = write_all(file.get(), postcopy::encode_working_set(state_, blocks, order));
  if (written && ::rename(part.c_str(), path_.c_str()) == 0) return {};
  auto error = written ? Error::from_errno("rename") : std::move(written).error();
  ::unlink(part.c_str());
  return error;
}

}  // namespace migrationd::migration
