// SPDX-License-Identifier: Apache-2.0
//
// PositionalFile: many reads and writes of one file in flight, each at its own offset.
//
// Contract
//   * One owner thread. Nobody's file position is touched, so several of them may share one open file.
//   * start_read() and start_write() begin an operation under a tag that the caller chose; at most depth() are in
//     flight (a programming error otherwise). Its memory belongs to the operation until wait_one() has returned the
//     tag.
//   * Operations in flight are in no order among each other. Two that touch the same bytes must not be in flight
//   together.
//   * A transfer that the kernel cuts short is continued. A read that meets the end of the file is an error.
//   * wait_one() returns the tag of one that is done, or the error of one that failed, ErrorKind::io with the offset
//     ("write at 0x1000: No space left on device"). After an error the others are still to be waited for; drain() and
//     the destructor do that, for the kernel would go on using their memory.
//   * A stop does not reach operations in flight: they are few, bounded in size, and the disk answers.
//   * With direct I/O, offsets, lengths and addresses are multiples of alignment().
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace migrationd::transports {

class PositionalFile {
 public:
  using Tag = std::uint32_t;

  PositionalFile() = default;
  PositionalFile(const PositionalFile&) = delete;
  PositionalFile& operator=(const PositionalFile&) = delete;
  virtual ~PositionalFile() = default;

  virtual std::size_t depth() const noexcept = 0;
  virtual std::size_t in_flight() const noexcept = 0;
  // 1: any.
  virtual std::size_t alignment() const noexcept = 0;
  virtual Result<void> start_read(Tag tag, std::uint64_t offset, std::span<std::byte> into) = 0;
  virtual Result<void> start_write(Tag tag, std::uint64_t offset, ByteView from) = 0;
  // Call only while in_flight() > 0.
  virtual Result<Tag> wait_one() = 0;

  // Waits for all; the first error.
  Result<void> drain();
};

enum class FileEngine : std::uint8_t {
  best,   // io_uring where the kernel lets us have it, else plain
  plain,  // one pread or pwrite after the other: depth() is 1 in effect
};

// `direct`: the descriptor was opened with O_DIRECT. Errors: no memory or descriptors for a ring is none (plain is
// taken); what the file demands for direct I/O cannot be found out.
Result<std::unique_ptr<PositionalFile>> make_positional_file(UniqueFd fd, bool direct, std::size_t depth,
                                                             FileEngine engine = FileEngine::best);

// The same file `count` times, for so many threads. `fd` stays the caller's. Errors: those of make_positional_file(),
// or no descriptor is left.
Result<std::vector<std::unique_ptr<PositionalFile>>> share_positional_file(int fd, bool direct, std::size_t depth,
                                                                           std::size_t count,
                                                                           FileEngine engine = FileEngine::best);

// What was never written to a new file reads as zeros; a block device holds what it held.
Result<bool> reads_as_zeros_when_new(int fd);

// What direct I/O on this open file demands of offsets and addresses; 4096 where the kernel cannot say (before 6.1).
// Error: the file takes no direct I/O.
Result<std::size_t> direct_io_alignment(int fd);

}  // namespace migrationd::transports
