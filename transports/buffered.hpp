// SPDX-License-Identifier: Apache-2.0
//
// BufferedReader and BufferedWriter: the main stream's two ends over a Channel.
//
// The stream is a long row of records of a few bytes, most of them followed by one page. Both classes exist so
// that neither the record costs a system call nor the page a copy more than it must:
//
//   * The writer gathers. Small pieces are copied into an arena, pages are only referred to, and one writev
//     carries up to IOV_MAX pieces. Neighbours in the arena are one piece.
//   * The reader takes whatever the kernel has, up to its capacity, and shows it as one contiguous view. What
//     does not fit the buffer goes straight to its destination, with the buffer as the second half of the same
//     readv, so that a large read costs one call and leaves the following records buffered.
//
// Sizes are bytes. Thread: one owner each; reader and writer of one channel may live on two threads. Errors are
// those of the Channel; a stream that ends in the middle of what was asked for is ErrorKind::wire, so that it is
// told apart from the clean end (at_end()) and from a broken connection (ErrorKind::io).
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "transports/channel.hpp"

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>

namespace migrationd::transports {

class BufferedReader {
 public:
  static constexpr std::size_t default_capacity = std::size_t{512} << 10;

  // Does not own the channel. `capacity` bounds what peek() may ask for.
  explicit BufferedReader(Channel& channel, std::size_t capacity = default_capacity);

  // All that is buffered, once that is at least `at_least` (<= capacity()) bytes; reads from the channel only
  // when it is not. The view stays valid until the next peek, read_exact or at_end. at_least == 0 never reads.
  // Error when the stream ends first: ErrorKind::wire, "stream ends too early (needs 8 bytes, has 3)"; what was
  // buffered remains so.
  Result<ByteView> peek(std::size_t at_least) {
    if (end_ - begin_ < at_least) [[unlikely]]
      MD_CHECK(fill(at_least));
    return buffered();
  }
  // Takes `count` bytes (<= buffered().size()) off the front.
  void consume(std::size_t count) noexcept { begin_ += count; }

  // Fills `into` completely. Errors as peek.
  Result<void> read_exact(std::span<std::byte> into) {
    if (into.size() <= end_ - begin_) [[likely]] {
      if (!into.empty()) std::memcpy(into.data(), store_.get() + begin_, into.size());
      begin_ += into.size();
      return {};
    }
    return read_past_buffer(into);
  }

  // For a reader that guesses where the bytes to come belong. One read of the channel, into the pieces and not through
  // the buffer, which must be empty: what there is, at least one byte; 0: the peer ended the stream.
  Result<std::size_t> read_pieces(std::span<const iovec> into);
  // Gives back the last bytes taken, in order: they are buffered and come next again. At most capacity(); the buffer
  // must be empty.
  void unread(std::span<const iovec> pieces) noexcept;

  // Drops what is buffered and not consumed, as if it had never been read: the owner moved the channel elsewhere.
  void forget_buffered() noexcept {
    total_read_ -= end_ - begin_;
    begin_ = end_ = 0;
  }

  // True when the peer ended the stream and nothing is left; waits for a byte or the end.
  Result<bool> at_end();

  ByteView buffered() const noexcept { return {store_.get() + begin_, end_ - begin_}; }
  std::size_t capacity() const noexcept { return capacity_; }
  // Bytes taken from the channel, consumed or not.
  std::uint64_t total_read() const noexcept { return total_read_; }
  // Bytes consumed: the place in the stream where the next byte comes from; for error texts.
  std::uint64_t position() const noexcept { return total_read_ - (end_ - begin_); }
  Channel& channel() const noexcept { return channel_; }

 private:
  Result<void> fill(std::size_t at_least);
  Result<void> read_past_buffer(std::span<std::byte> into);

  Channel& channel_;
  std::size_t capacity_;
  std::unique_ptr<std::byte[]> store_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::uint64_t total_read_ = 0;
};

class BufferedWriter {
 public:
  // One writev takes IOV_MAX (1024) pieces: 512 pages with their headers.
  static constexpr std::size_t max_pieces = 1024;
  // Headers of one batch of pages fill 8 KiB; runs of zero records (9 bytes each) use the rest.
  static constexpr std::size_t arena_bytes = std::size_t{64} << 10;
  // What may be referred to before it is sent, so that a rate limit and a stop act on small steps.
  static constexpr std::size_t max_pending_bytes = std::size_t{2} << 20;

  // Does not own the channel.
  explicit BufferedWriter(Channel& channel);
  // Unflushed bytes are dropped: who wants them sent calls flush() and looks at its result.
  ~BufferedWriter() = default;
  BufferedWriter(const BufferedWriter&) = delete;
  BufferedWriter& operator=(const BufferedWriter&) = delete;

  // Copies `bytes`; flushes first when a bound would be passed. Any size. After an error the writer is dead:
  // every later call fails in the same way.
  Result<void> append(ByteView bytes) {
    if (bytes.size() > arena_bytes - arena_used_ || pieces_ == max_pieces || dead_) [[unlikely]]
      return append_slow(bytes);
    copy_in(bytes);
    return {};
  }
  // Refers to `bytes`: they stay where they are until the next flush() has returned, or until
  // pending_bytes() is 0. They may change meanwhile (guest pages do); what is sent is what they were when the
  // kernel read them. Flushes by itself after the piece that reaches a bound.
  Result<void> append_reference(ByteView bytes) {
    if (pieces_ == max_pieces || dead_) [[unlikely]]
      MD_CHECK(flush());
    arena_tail_open_ = false;
    iov_[pieces_++] = {const_cast<std::byte*>(bytes.data()), bytes.size()};
    pending_ += bytes.size();
    if (pending_ >= max_pending_bytes) [[unlikely]]
      return flush();
    return {};
  }
  // Hands everything pending to the channel; returns when the kernel has taken it.
  Result<void> flush();

  std::size_t pending_bytes() const noexcept { return pending_; }
  // Bytes appended so far, sent or pending.
  std::uint64_t total_written() const noexcept { return flushed_ + pending_; }
  Channel& channel() const noexcept { return channel_; }

 private:
  void copy_in(ByteView bytes) noexcept {
    std::byte* const to = arena_.get() + arena_used_;
    if (!bytes.empty()) std::memcpy(to, bytes.data(), bytes.size());
    arena_used_ += bytes.size();
    pending_ += bytes.size();
    if (arena_tail_open_) {
      iov_[pieces_ - 1].iov_len += bytes.size();
    } else {
      iov_[pieces_++] = {to, bytes.size()};
      arena_tail_open_ = true;
    }
  }
  Result<void> append_slow(ByteView bytes);

  Channel& channel_;
  std::unique_ptr<std::byte[]> arena_;
  std::unique_ptr<iovec[]> iov_;
  std::size_t arena_used_ = 0;
  std::size_t pieces_ = 0;
  std::size_t pending_ = 0;
  std::uint64_t flushed_ = 0;
  bool arena_tail_open_ = false;  // the last piece is the arena's end and can grow
  bool dead_ = false;
  Error failure_;  // why, once dead
};

}  // namespace migrationd::transports
