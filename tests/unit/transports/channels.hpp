// SPDX-License-Identifier: Apache-2.0
//
// Channels for tests of every folder: a connected pair over a socketpair, and one that lives in memory, hands out
// its input in pieces of a chosen size, keeps what is written, and fails where it is told to.
#pragma once

#include "base/bytes.hpp"
#include "base/stop.hpp"
#include "transports/channel.hpp"
#include "transports/descriptor_channel.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <memory>
#include <utility>

namespace migrationd::testing {

inline std::unique_ptr<StopSource> make_stop() {
  auto stop = StopSource::make();
  if (!stop) std::abort();
  return std::move(*stop);
}

struct ChannelPair {
  std::unique_ptr<transports::Channel> left;
  std::unique_ptr<transports::Channel> right;
};

// Two ends of one unix socket; each ends with its own stop.
inline ChannelPair make_channel_pair(StopSource& left_stop, StopSource& right_stop) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
  using transports::DescriptorChannel;
  using transports::DescriptorKind;
  ChannelPair out;
  out.left = std::make_unique<DescriptorChannel>(UniqueFd(fds[0]), DescriptorKind::socket, left_stop, "test:left");
  out.right = std::make_unique<DescriptorChannel>(UniqueFd(fds[1]), DescriptorKind::socket, right_stop, "test:right");
  return out;
}

class MemoryChannel final : public transports::Channel {
 public:
  MemoryChannel() = default;
  explicit MemoryChannel(Bytes input) : input_(std::move(input)) {}

  // The most one read gives; 1 finds every assumption about record borders.
  std::size_t largest_read = std::numeric_limits<std::size_t>::max();
  // Calls (reads and writes together) that succeed before each further one fails with "broken on purpose".
  std::size_t calls_until_failure = std::numeric_limits<std::size_t>::max();
  std::size_t calls = 0;
  std::size_t write_calls = 0;
  bool finished = false;

  const Bytes& output() const noexcept { return output_; }

  Result<std::size_t> read(std::span<const iovec> into) override {
    if (calls++ >= calls_until_failure) return Error(ErrorKind::io, "broken on purpose");
    std::size_t done = 0;
    for (const iovec& piece : into) {
      const std::size_t count = std::min({piece.iov_len, input_.size() - position_, largest_read - done});
      if (count > 0) std::memcpy(piece.iov_base, input_.data() + position_, count);
      position_ += count;
      done += count;
    }
    return done;
  }
  Result<void> write(std::span<const iovec> from) override {
    if (calls++ >= calls_until_failure) return Error(ErrorKind::io, "broken on purpose");
    ++write_calls;
    for (const iovec& piece : from) {
      const auto* bytes = static_cast<const std::byte*>(piece.iov_base);
      output_.insert(output_.end(), bytes, bytes + piece.iov_len);
    }
    return {};
  }
  void shutdown() noexcept override {}
  Result<void> finish_writing() override {
    finished = true;
    return {};
  }
  bool bidirectional() const noexcept override { return false; }
  bool is_file() const noexcept override { return false; }
  Result<void> sync_to_disk() override { return {}; }
  std::string describe() const override { return "test:memory"; }
  int readable_fd() const noexcept override { return -1; }

 private:
  Bytes input_;
  Bytes output_;
  std::size_t position_ = 0;
};

}  // namespace migrationd::testing
