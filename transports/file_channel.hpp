// SPDX-License-Identifier: Apache-2.0
//
// FileChannel: the SeekableChannel over a descriptor. It reads and writes at offsets of its own, so that the position
// of an open file that somebody passed is moved once, at the end, to where the stream ended (as QEMU leaves it).
//
// A file being written is told from a finished one by its first bytes. They are kept back, zeros stand there instead,
// and sync_to_disk() writes them when everything else is on the disk: data synced, mark written, mark synced, then the
// directory of a file that we made. So whatever dies when, process, host or disk, a file that begins with its mark is
// whole.
#pragma once

#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "transports/seekable_channel.hpp"

#include <array>
#include <cstdint>
#include <memory>
#include <string>

namespace migrationd::transports {

class FileChannel final : public SeekableChannel {
 public:
  static constexpr std::size_t mark_bytes = 8;

  // Begins at `start`. `stop` outlives the channel. `description` as describe() says it; made printable here.
  FileChannel(UniqueFd fd, std::uint64_t start, StopSource& stop, std::string_view description);

  // For writing: the first mark_bytes of the stream are written last.
  void write_mark_last() noexcept { mark_is_kept_back_ = true; }
  // The directory to make durable: that of a file we created.
  void set_directory(UniqueFd directory) noexcept { directory_ = std::move(directory); }

  Result<std::size_t> read(std::span<const iovec> into) override;
  Result<void> write(std::span<const iovec> from) override;
  void shutdown() noexcept override {}
  Result<void> finish_writing() override;
  bool bidirectional() const noexcept override { return false; }
  bool is_file() const noexcept override { return true; }
  Result<void> sync_to_disk() override;
  std::string describe() const override { return description_; }
  int readable_fd() const noexcept override { return -1; }

  std::uint64_t position() const noexcept override { return position_; }
  void seek(std::uint64_t position) noexcept override { position_ = position; }
  Result<std::uint64_t> size() const override;
  Result<void> read_at(std::uint64_t offset, std::span<std::byte> into) override;
  Result<void> write_at(std::uint64_t offset, ByteView from) override;

 private:
  // What of `bytes` belongs to the mark: remembered, and as many zeros written. Returns how many bytes that were.
  Result<std::size_t> keep_back(ByteView bytes);
  Result<void> sync_data();

  StopSource& stop_;
  UniqueFd fd_;
  UniqueFd directory_;
  std::string description_;
  std::uint64_t start_;
  std::uint64_t position_;
  bool mark_is_kept_back_ = false;
  std::array<std::byte, mark_bytes> mark_{};
};

// A mapped-ram file: its stream, and a descriptor of the same file for page data, where `direct` says how that was
// opened.
struct MappedFile {
  std::unique_ptr<FileChannel> stream;
  UniqueFd pages;
  bool direct = false;
};

// The two descriptors of an opened file as such. Error: `fd` has no position, so it is no file that can be mapped.
Result<MappedFile> make_mapped_file(UniqueFd fd, UniqueFd pages, bool direct, StopSource& stop,
                                    std::string_view description);

}  // namespace migrationd::transports
