// SPDX-License-Identifier: Apache-2.0
// Two ends of a stream in memory, for tests: what is written to the one is read from the other, in pieces as small as
// the test wants. The reading end says "ended" when nothing is left.
#pragma once

#include "base/bytes.hpp"
#include "transports/channel.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace migrationd::ram::test {

class MemoryChannel final : public transports::Channel {
 public:
  explicit MemoryChannel(std::size_t largest_read = ~std::size_t{0}) : largest_read_(largest_read) {}

  Result<std::size_t> read(std::span<const iovec> into) override {
    std::size_t done = 0;
    read_in_pieces = read_in_pieces || into.size() > 2;
    for (const iovec& part : into) {
      const std::size_t count = std::min({part.iov_len, bytes.size() - position_, largest_read_ - done});
      if (count > 0) std::memcpy(part.iov_base, bytes.data() + position_, count);  // no bytes may mean no buffer
      position_ += count;
      done += count;
    }
    return done;
  }
  Result<void> write(std::span<const iovec> from) override {
    if (write_errno != 0) return Error::from_errno("write", write_errno);
    for (const iovec& part : from) {
      const auto* const data = static_cast<const std::byte*>(part.iov_base);
      bytes.insert(bytes.end(), data, data + part.iov_len);
    }
    ++writes;
    return {};
  }
  void shutdown() noexcept override { ++shutdowns; }
  Result<void> finish_writing() override { return {}; }
  bool bidirectional() const noexcept override { return false; }
  bool is_file() const noexcept override { return false; }
  Result<void> sync_to_disk() override { return {}; }
  std::string describe() const override { return "memory"; }
  int readable_fd() const noexcept override { return -1; }

  Bytes bytes;
  int writes = 0;
  int write_errno = 0;  // of every write from now on; 0: they succeed
  std::atomic<int> shutdowns = 0;
  bool read_in_pieces = false;  // more than the two that a BufferedReader itself asks for

 private:
  std::size_t position_ = 0;
  std::size_t largest_read_;
};

}  // namespace migrationd::ram::test
