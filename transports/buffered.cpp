// SPDX-License-Identifier: Apache-2.0
#include "transports/buffered.hpp"

#include <fmt/format.h>

#include <cassert>
#include <climits>

namespace migrationd::transports {

static_assert(BufferedWriter::max_pieces <= IOV_MAX);

namespace {

Error ended_early(std::size_t needed, std::size_t have) {
  return wire_error(fmt::format("stream ends too early (needs {} bytes, has {})", needed, have));
}

}  // namespace

// --- reader -----------------------------------------------------------------------------------------------

BufferedReader::BufferedReader(Channel& channel, std::size_t capacity)
    : channel_(channel), capacity_(capacity), store_(new std::byte[capacity]) {
  assert(capacity > 0);
}

// The rest moves to the front only when there is something to read: a caller that peeks records off a full
// buffer moves at most one cut record per buffer.
Result<void> BufferedReader::fill(std::size_t at_least) {
  assert(at_least <= capacity_);
  const std::size_t have = end_ - begin_;
  if (begin_ > 0) {
    if (have > 0) std::memmove(store_.get(), store_.get() + begin_, have);
    begin_ = 0;
    end_ = have;
  }
  while (end_ < at_least) {
    const iovec room{store_.get() + end_, capacity_ - end_};
    MD_TRY(const std::size_t got, channel_.read({&room, 1}));
    if (got == 0) return ended_early(at_least, end_);
    end_ += got;
    total_read_ += got;
  }
  return {};
}

Result<void> BufferedReader::read_past_buffer(std::span<std::byte> into) {
  const std::size_t wanted = into.size();
  const std::size_t have = end_ - begin_;
  if (have > 0) std::memcpy(into.data(), store_.get() + begin_, have);
  into = into.subspan(have);
  begin_ = end_ = 0;
  while (!into.empty()) {
    const iovec parts[2] = {{into.data(), into.size()}, {store_.get(), capacity_}};
    MD_TRY(const std::size_t got, channel_.read(parts));
    if (got == 0) return ended_early(wanted, wanted - into.size());
    total_read_ += got;
    if (got >= into.size()) {
      end_ = got - into.size();
      return {};
    }
    into = into.subspan(got);
  }
  return {};
}

Result<std::size_t> BufferedReader::read_pieces(std::span<const iovec> into) {
  assert(begin_ == end_);
  MD_TRY(const std::size_t got, channel_.read(into));
  total_read_ += got;
  return got;
}

void BufferedReader::unread(std::span<const iovec> pieces) noexcept {
  assert(begin_ == end_);
  begin_ = end_ = 0;
  for (const iovec& piece : pieces) {
    assert(piece.iov_len <= capacity_ - end_);
    if (piece.iov_len > 0) std::memcpy(store_.get() + end_, piece.iov_base, piece.iov_len);
    end_ += piece.iov_len;
  }
}

Result<bool> BufferedReader::at_end() {
  if (end_ > begin_) return false;
  begin_ = end_ = 0;
  const iovec room{store_.get(), capacity_};
  MD_TRY(const std::size_t got, channel_.read({&room, 1}));
  end_ = got;
  total_read_ += got;
  return got == 0;
}

// --- writer -----------------------------------------------------------------------------------------------

BufferedWriter::BufferedWriter(Channel& channel)
    : channel_(channel), arena_(new std::byte[arena_bytes]), iov_(new iovec[max_pieces]) {}

Result<void> BufferedWriter::append_slow(ByteView bytes) {
  // The open arena piece can grow although no new piece fits.
  const bool fits = bytes.size() <= arena_bytes - arena_used_ && (pieces_ < max_pieces || arena_tail_open_);
  if (!fits || dead_) MD_CHECK(flush());
  if (bytes.size() <= arena_bytes - arena_used_) {
    copy_in(bytes);
    return {};
  }
  // Larger than the arena, which is empty now: sent from where it lies, and sent before we return.
  iov_[pieces_++] = {const_cast<std::byte*>(bytes.data()), bytes.size()};
  pending_ += bytes.size();
  return flush();
}

Result<void> BufferedWriter::flush() {
  if (dead_) return failure_;
  if (pieces_ == 0) return {};
  const auto written = channel_.write({iov_.get(), pieces_});
  flushed_ += pending_;
  pending_ = pieces_ = arena_used_ = 0;
  arena_tail_open_ = false;
  if (!written) {
    dead_ = true;
    failure_ = written.error();
    return failure_;
  }
  return {};
}

}  // namespace migrationd::transports
