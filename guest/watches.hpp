// SPDX-License-Identifier: Apache-2.0
//
// Watches: the userfaultfds a guest opens for its daemon, and what becomes of them when the daemon dies.
//
// The daemon gets a duplicate and does all the work with it (registers ranges, scans, resolves). The guest keeps the
// original, because of what the last close does: it takes all protection away and wakes whoever waits. That is right
// for write protection, and wrong for missing pages: who waits for one would be given zeros. So a watch for missing
// pages whose daemon died stays open for good (docs/formats/guest-protocol.md).
//
// Thread: one at a time.
#pragma once

#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "guest/blocks.hpp"
#include "guest/protocol.hpp"

#include <array>
#include <mutex>
#include <span>

namespace migrationd::guest {

class Watches {
 public:
  // A descriptor of /dev/userfaultfd that the daemon sent; the first to be asked.
  void set_device(UniqueFd device) noexcept { device_ = std::move(device); }

  // A fresh userfaultfd after its handshake with exactly these features. The descriptor stays ours; the caller sends
  // it. Errors: one is open for this purpose; none may be opened; the kernel lacks a feature.
  Result<int> open(Purpose purpose, std::uint64_t features);
  Result<void> close(Purpose purpose);

  // The daemon is gone: protection is lifted and its waiters woken; missing pages stay missing.
  void daemon_gone(std::span<const Block> blocks) noexcept;
  // Pages were to come from a daemon that is gone.
  bool has_lost_pages() const noexcept;

  // While pages are still to come a punched one would be filled with what the other end still sends. There whole pages
  // of `block` are made zeros instead, whether they came or not: true. False: nothing is to come, so punch. Any thread.
  Result<bool> put_zeros(const Block& block, std::uint64_t offset, std::uint64_t length);
  // In a forked child: closes its copies. Without the lock, which a thread that the child does not have may hold.
  void leave() noexcept;
  // At the end of the guest: a watch whose close would give zeros to waiters is left open.
  ~Watches();
  Watches() = default;
  Watches(const Watches&) = delete;
  Watches& operator=(const Watches&) = delete;

 private:
  UniqueFd& slot(Purpose purpose) noexcept { return open_[static_cast<std::size_t>(purpose) - 1]; }

  UniqueFd device_;
  // put_zeros() uses a descriptor that the serving thread closes. Held by every member with open_ or lost_pages_.
  mutable std::mutex lock_;
  std::array<UniqueFd, 3> open_;
  UniqueFd lost_pages_;
};

}  // namespace migrationd::guest
