// SPDX-License-Identifier: Apache-2.0
//
// RdmaLane: a further queue pair of a migration between two of our daemons. It carries page writes, and one kind of
// message: a fence.
//
// Why a fence: what a write's completion tells the source is that the destination's adapter has the bytes. That they
// are visible to the destination's CPU is promised for messages that follow on the same queue pair, and for no others.
// So before REGISTER FINISHED goes over the main connection, every lane carries one empty message of that name, and the
// destination waits for all of them. The READY for REGISTER FINISHED also says that the lanes have a receive posted.
//
// Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/rdma/control.hpp"
#include "transports/rdma_link.hpp"

#include <array>
#include <cstddef>
#include <functional>
#include <memory>

namespace migrationd::ram {

class RdmaWriteListener;

class RdmaLane {
 public:
  // Takes a link that is not established, and posts the receive of the first fence. `stop` outlives it.
  static Result<std::unique_ptr<RdmaLane>> make(std::unique_ptr<transports::RdmaLink> link, StopSource& stop);

  transports::RdmaLink& link() noexcept { return *link_; }
  const transports::RdmaLink& link() const noexcept { return *link_; }
  void set_write_listener(RdmaWriteListener* listener) noexcept { writes_ = listener; }

  // Takes what has completed; never waits.
  Result<void> pump();
  // Until `done`. Error when the peer disconnects before, or nothing completes for too long.
  Result<void> wait_until(const std::function<bool()>& done);

  // The source: all writes before it are complete.
  Result<void> send_fence();
  // The destination: waits for the source's, and expects the next one.
  Result<void> await_fence();

 private:
  RdmaLane(std::unique_ptr<transports::RdmaLink> link, StopSource& stop);
  Result<void> post_fence_receive();

  StopSource& stop_;
  // One fence to receive, one to send. The link goes first.
  std::array<std::byte, 2 * rdma::control_header_bytes> memory_{};
  std::unique_ptr<transports::RdmaRegion> region_;
  std::unique_ptr<transports::RdmaLink> link_;
  RdmaWriteListener* writes_ = nullptr;
  bool sending_ = false;
  bool fence_came_ = false;
  std::array<transports::RdmaCompletion, 32> completions_;
};

}  // namespace migrationd::ram
