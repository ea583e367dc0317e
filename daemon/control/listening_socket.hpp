// SPDX-License-Identifier: Apache-2.0
//
// The control socket as a thing in the file system.
//
// Binding a path: a live socket there (somebody accepts) refuses the start; a stale one, left by a daemon that
// was killed, is replaced; anything that is no socket is left alone and refuses the start. Two daemons that start
// at the same moment are kept apart by a lock on the directory, so that one cannot replace the other's fresh
// socket. At the end the path is removed only if it is still ours.
//
// A daemon that is replaced while it runs (docs/formats/update.md) hands the descriptor over and disowns the path: the
// socket stays, with whoever waits in its queue, and belongs to the next one.
//
// Thread: control (or main before it). Everything is close-on-exec.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>

namespace migrationd::control {

// Clients that talk to the daemon (a stream), or a guest that attaches (packets).
enum class SocketUse : std::uint8_t { control, guest };

struct SocketOptions {
  std::string path;
  std::optional<mode_t> mode;        // default 0600, or 0660 when a group is given
  std::optional<std::string> group;  // name or number
};

class ListeningSocket {
 public:
  static Result<ListeningSocket> bind(const SocketOptions& options, SocketUse use = SocketUse::control);
  // A listening stream socket made by somebody else (socket activation); its path is theirs to remove.
  static Result<ListeningSocket> adopt(UniqueFd socket, SocketUse use = SocketUse::control);

  ListeningSocket(ListeningSocket&& other) noexcept = default;
  ListeningSocket& operator=(ListeningSocket&&) = delete;
  ~ListeningSocket();

  int fd() const noexcept { return socket_.get(); }
  // "unix:/run/a.sock"; for logs.
  const std::string& name() const noexcept { return name_; }
  // Whether the path is removed with it.
  bool owns_path() const noexcept { return !path_.empty(); }
  // The path is another's to remove, or ours from now on: that of an adopted socket, if it is still there.
  void disown_path() noexcept { path_.clear(); }
  void own_path();
  // The next waiting client, or an invalid descriptor when there is none now.
  Result<UniqueFd> accept() const;

 private:
  ListeningSocket(UniqueFd socket, std::string name) : socket_(std::move(socket)), name_(std::move(name)) {}

  UniqueFd socket_;
  std::string name_;
  std::string path_;  // empty: not ours to remove
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace migrationd::control
