// SPDX-License-Identifier: Apache-2.0
//
// DescriptorChannel: the Channel over a descriptor, for sockets of every family, pipes and files.
//
// How a write can end with the stop, without O_NONBLOCK on a descriptor that somebody else may share:
//   * socket: MSG_DONTWAIT, then poll.
//   * pipe of ours (exec): our end has an open file description of its own, so O_NONBLOCK harms nobody.
//   * pipe that was passed: the same by opening it anew through /proc/self/fd; where that is not permitted
//     (another user made the pipe) RWF_NOWAIT, which pipes know since Linux 6.5; before that, PIPE_BUF bytes
//     after poll said there is room for them.
//   * regular file, block device: blocking, a bounded piece per call; the stop is looked at between pieces.
// A read from a pipe after poll never blocks: it returns what is there.
#pragma once

#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "transports/channel.hpp"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace migrationd::transports {

enum class DescriptorKind : std::uint8_t { socket, pipe, file };

// By fstat. Error for what cannot carry a stream: directories, datagram and listening sockets.
Result<DescriptorKind> kind_of(int fd);

class DescriptorChannel : public Channel {
 public:
  // `stop` outlives the channel. `description` is what describe() says; made printable here.
  DescriptorChannel(UniqueFd fd, DescriptorKind kind, StopSource& stop, std::string_view description);
  // Two pipes of ours, for exec.
  DescriptorChannel(UniqueFd read_end, UniqueFd write_end, StopSource& stop, std::string_view description);

  Result<std::size_t> read(std::span<const iovec> into) override;
  Result<void> write(std::span<const iovec> from) override;
  void shutdown() noexcept override;
  Result<void> finish_writing() override;
  bool bidirectional() const noexcept override { return kind_ == DescriptorKind::socket || two_pipes_; }
  bool is_file() const noexcept override { return kind_ == DescriptorKind::file; }
  Result<void> sync_to_disk() override;
  std::string describe() const override { return description_; }
  int readable_fd() const noexcept override { return is_file() ? -1 : fd_.get(); }

  // For tests: as if the pipe could not be opened anew, or as on a kernel before 6.5 (the top of this file).
  enum class PipeTactic : std::uint8_t { nowait, after_poll };
  void force(PipeTactic tactic) noexcept;

  // The directory to make durable in sync_to_disk(): that of a file we created.
  void set_directory(UniqueFd directory) noexcept { directory_ = std::move(directory); }

 protected:
  StopSource& stop() const noexcept { return stop_; }
  UniqueFd& read_end() noexcept { return fd_; }
  UniqueFd& write_end() noexcept { return two_pipes_ ? write_fd_ : fd_; }

 private:
  enum class WriteMode : std::uint8_t { socket, nonblocking, nowait, after_poll, blocking };

  void prepare_pipe();
  ssize_t write_once(int fd, std::span<const iovec> chunk);
  Result<void> wait_for(int fd, short events) const;
  Error failed(const char* verb, const char* preposition) const;

  StopSource& stop_;
  UniqueFd fd_;
  UniqueFd write_fd_;
  UniqueFd directory_;
  std::string description_;
  std::vector<iovec> scratch_;  // a chunk whose first entry was partly written; writer thread
  DescriptorKind kind_;
  WriteMode write_mode_ = WriteMode::socket;
  bool two_pipes_ = false;
  bool read_polls_first_ = false;
};

}  // namespace migrationd::transports
