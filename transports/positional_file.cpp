// SPDX-License-Identifier: Apache-2.0
#include "transports/positional_file.hpp"

#include "transports/uring_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace migrationd::transports {

namespace {

// Works at once and only remembers what came of it, for wait_one() to tell.
class PlainFile final : public PositionalFile {
 public:
  PlainFile(UniqueFd fd, std::size_t alignment, std::size_t depth)
      : fd_(std::move(fd)), alignment_(alignment), depth_(depth) {}

  std::size_t depth() const noexcept override { return depth_; }
  std::size_t in_flight() const noexcept override { return done_.size(); }
  std::size_t alignment() const noexcept override { return alignment_; }

  Result<void> start_read(Tag tag, std::uint64_t offset, std::span<std::byte> into) override {
    done_.push_back({tag, read_all(offset, into)});
    return {};
  }
  Result<void> start_write(Tag tag, std::uint64_t offset, ByteView from) override {
    done_.push_back({tag, write_all(offset, from)});
    return {};
  }
  Result<Tag> wait_one() override {
    const Done first = std::move(done_.front());
    done_.erase(done_.begin());
    if (!first.result) return first.result.error();
    return first.tag;
  }

 private:
  struct Done {
    Tag tag;
    Result<void> result;
  };

  Result<void> read_all(std::uint64_t offset, std::span<std::byte> into) const {
    while (!into.empty()) {
      const ssize_t got = ::pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return transfer_error(FileOperation::read, offset, errno);
      const auto done = static_cast<std::size_t>(got);
      const std::size_t missing = into.size() - done;
      // Direct I/O stops between two sectors only where the file ends.
      if (got == 0 || (missing != 0 && done % alignment_ != 0)) return short_file_error(offset + done, missing);
      offset += done;
      into = into.subspan(done);
    }
    return {};
  }
  Result<void> write_all(std::uint64_t offset, ByteView from) const {
    while (!from.empty()) {
      const ssize_t put = ::pwrite(fd_.get(), from.data(), from.size(), static_cast<off_t>(offset));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) return transfer_error(FileOperation::write, offset, put == 0 ? ENOSPC : errno);
      offset += static_cast<std::uint64_t>(put);
      from = from.subspan(static_cast<std::size_t>(put));
    }
    return {};
  }

  UniqueFd fd_;
  std::size_t alignment_;
  std::size_t depth_;
  std::vector<Done> done_;
};

}  // namespace

Result<void> PositionalFile::drain() {
  Result<void> first;
  while (in_flight() > 0)
    if (auto done = wait_one(); !done && first) first = std::move(done).error();
  return first;
}

Error transfer_error(FileOperation operation, std::uint64_t offset, int err) {
  return Error::from_errno(
      fmt::format("{} at {} of the file", operation == FileOperation::read ? "read" : "write", hex(offset)), err);
}

Error short_file_error(std::uint64_t offset, std::size_t missing) {
  return wire_error(fmt::format("the file ends at {}, {} bytes too early: it is cut off", hex(offset), missing));
}

Result<std::size_t> direct_io_alignment(int fd) {
  constexpr std::size_t usual = 4096;
#ifdef STATX_DIOALIGN
  struct statx about {};
  if (::statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &about) != 0) return Error::from_errno("examine the file");
  if ((about.stx_mask & STATX_DIOALIGN) != 0) {
    if (about.stx_dio_offset_align == 0) return plan_error("filesystem does not support O_DIRECT");
    return std::max<std::size_t>(about.stx_dio_offset_align, about.stx_dio_mem_align);
  }
#else
  static_cast<void>(fd);
#endif
  return usual;
}

Result<std::unique_ptr<PositionalFile>> make_positional_file(UniqueFd fd, bool direct, std::size_t depth,
                                                             FileEngine engine) {
  std::size_t alignment = 1;
  if (direct) {
    MD_TRY(alignment, direct_io_alignment(fd.get()));
  }
  if (engine == FileEngine::best) {
    if (auto ring = UringFile::make(fd, alignment, depth)) return ring;
  }
  return std::unique_ptr<PositionalFile>(std::make_unique<PlainFile>(std::move(fd), alignment, depth));
}

Result<std::vector<std::unique_ptr<PositionalFile>>> share_positional_file(int fd, bool direct, std::size_t depth,
                                                                           std::size_t count, FileEngine engine) {
  std::vector<std::unique_ptr<PositionalFile>> files;
  while (files.size() < count) {
    // Nobody's position is used, so one open file does for all.
    UniqueFd same(::fcntl(fd, F_DUPFD_CLOEXEC, 3));
    if (!same) return Error::from_errno("open the file once more");
    MD_TRY(auto file, make_positional_file(std::move(same), direct, depth, engine));
    files.push_back(std::move(file));
  }
  return files;
}

Result<bool> reads_as_zeros_when_new(int fd) {
  struct stat about {};
  if (::fstat(fd, &about) != 0) return Error::from_errno("examine the file");
  return S_ISREG(about.st_mode);
}

}  // namespace migrationd::transports
