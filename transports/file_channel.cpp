// SPDX-License-Identifier: Apache-2.0
#include "transports/file_channel.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <climits>
#include <cstring>

namespace migrationd::transports {

namespace {

// How much is written without a look at the stop.
constexpr std::size_t piece_bytes = std::size_t{4} << 20;

}  // namespace

FileChannel::FileChannel(UniqueFd fd, std::uint64_t start, StopSource& stop, std::string_view description)
    : stop_(stop),
      fd_(std::move(fd)),
      description_(printable(description, printable_address_bytes)),
      start_(start),
      position_(start) {}

Result<std::size_t> FileChannel::read(std::span<const iovec> into) {
  while (true) {
    if (stop_.requested()) return cancelled_error();
    const int count = static_cast<int>(std::min<std::size_t>(into.size(), IOV_MAX));
    const ssize_t got = ::preadv(fd_.get(), into.data(), count, static_cast<off_t>(position_));
    if (got >= 0) {
      position_ += static_cast<std::uint64_t>(got);
      return static_cast<std::size_t>(got);
    }
    if (errno != EINTR) return Error::from_errno(fmt::format("Unable to read from file at {}", hex(position_)));
  }
}

Result<std::size_t> FileChannel::keep_back(ByteView bytes) {
  if (!mark_is_kept_back_ || position_ < start_ || position_ >= start_ + mark_bytes) return std::size_t{0};
  const auto from = static_cast<std::size_t>(position_ - start_);
  const std::size_t count = std::min(bytes.size(), mark_bytes - from);
  std::memcpy(mark_.data() + from, bytes.data(), count);
  constexpr std::array<std::byte, mark_bytes> zeros{};
  MD_CHECK(write_at(position_, ByteView(zeros).first(count)));
  return count;
}

Result<void> FileChannel::write(std::span<const iovec> from) {
  for (const iovec& piece : from) {
    ByteView rest(static_cast<const std::byte*>(piece.iov_base), piece.iov_len);
    MD_TRY(const std::size_t kept, keep_back(rest));
    position_ += kept;
    rest = rest.subspan(kept);
    while (!rest.empty()) {
      if (stop_.requested()) return cancelled_error();
      const ByteView now = rest.first(std::min(rest.size(), piece_bytes));
      MD_CHECK(write_at(position_, now));
      position_ += now.size();
      rest = rest.subspan(now.size());
    }
  }
  return {};
}

Result<void> FileChannel::read_at(std::uint64_t offset, std::span<std::byte> into) {
  while (!into.empty()) {
    const ssize_t got = ::pread(fd_.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return Error::from_errno(fmt::format("Unable to read from file at {}", hex(offset)));
    if (got == 0) {
      return wire_error(
          fmt::format("the file ends at {}, {} bytes too early: it is cut off", hex(offset), into.size()));
    }
    offset += static_cast<std::uint64_t>(got);
    into = into.subspan(static_cast<std::size_t>(got));
  }
  return {};
}

Result<void> FileChannel::write_at(std::uint64_t offset, ByteView from) {
  while (!from.empty()) {
    const ssize_t put = ::pwrite(fd_.get(), from.data(), from.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) {
      return Error::from_errno(fmt::format("Unable to write to file at {}", hex(offset)), put == 0 ? ENOSPC : errno);
    }
    offset += static_cast<std::uint64_t>(put);
    from = from.subspan(static_cast<std::size_t>(put));
  }
  return {};
}

Result<std::uint64_t> FileChannel::size() const {
  struct stat about {};
  if (::fstat(fd_.get(), &about) != 0) return Error::from_errno("examine the file");
  if (!S_ISBLK(about.st_mode)) return static_cast<std::uint64_t>(about.st_size);
  std::uint64_t bytes = 0;
  if (::ioctl(fd_.get(), BLKGETSIZE64, &bytes) != 0) return Error::from_errno("examine the block device");
  return bytes;
}

Result<void> FileChannel::finish_writing() {
  // Whoever passed the descriptor finds it at the stream's end. What cannot be moved is no loss.
  ::lseek(fd_.get(), static_cast<off_t>(position_), SEEK_SET);
  return {};
}

Result<void> FileChannel::sync_data() {
  if (::fdatasync(fd_.get()) != 0) return Error::from_errno("Unable to sync the file");
  return {};
}

Result<void> FileChannel::sync_to_disk() {
  MD_CHECK(sync_data());
  if (mark_is_kept_back_) {
    MD_CHECK(write_at(start_, mark_));
    MD_CHECK(sync_data());
  }
  if (directory_ && ::fsync(directory_.get()) != 0) return Error::from_errno("Unable to sync the file's directory");
  return {};
}

Result<MappedFile> make_mapped_file(UniqueFd fd, UniqueFd pages, bool direct, StopSource& stop,
                                    std::string_view description) {
  const off_t start = ::lseek(fd.get(), 0, SEEK_CUR);
  if (start < 0)
    return Error::from_errno(
        fmt::format("{} has no places to write at", printable(description, printable_address_bytes)));
  MappedFile out;
  out.stream = std::make_unique<FileChannel>(std::move(fd), static_cast<std::uint64_t>(start), stop, description);
  out.pages = std::move(pages);
  out.direct = direct;
  return out;
}

}  // namespace migrationd::transports
