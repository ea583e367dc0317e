// SPDX-License-Identifier: Apache-2.0
//
// RdmaWriter: page writes under way, over one or more queue pairs.
//
// A completion costs the adapter a write to memory and us a look. So only every 16th write of a queue pair asks for
// one: it tells that all before it are complete, too. Where the end of all is awaited and the last did not ask, an
// empty write behind it does.
//
// At most as many writes are under way as the queue takes; a full one is waited for. That is the back-pressure of a
// migration over RDMA. Writes that touch the same page must not be under way together: a pass has each page once, and
// finish() stands between passes.
//
// Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "ram/rdma_channel.hpp"
#include "transports/rdma_link.hpp"

#include <cstdint>
#include <memory>
#include <vector>

namespace migrationd::ram {

class RdmaWriter {
 public:
  static constexpr std::uint64_t signal_every = 16;
  // Of one queue pair. The queue has room for messages, too.
  static constexpr std::uint64_t most_under_way = transports::rdma_send_depth - 32;

  // The connections outlive it.
  explicit RdmaWriter(RdmaConnections& connections);
  ~RdmaWriter();
  RdmaWriter(const RdmaWriter&) = delete;
  RdmaWriter& operator=(const RdmaWriter&) = delete;

  std::size_t lanes() const noexcept { return lanes_.size(); }
  // Writes of pages so far, over all of them.
  std::uint64_t posted() const noexcept { return posted_; }
  // `lane` < lanes(). Memory and key of `from` stay until finish().
  Result<void> write(std::size_t lane, transports::RdmaLocal from, transports::RdmaRemote to);
  // All of them are complete.
  Result<void> finish();
  // finish(), and the fences of further queue pairs: whoever sees the next message of the main connection after them
  // sees all that was written. The peer said READY since the last time.
  Result<void> finish_and_fence();

 private:
  struct Lane final : RdmaWriteListener {
    void written(std::uint64_t id) noexcept override { completed = id; }
    RdmaControl* control = nullptr;  // of the main connection
    RdmaLane* lane = nullptr;        // of the others
    std::uint64_t posted = 0;
    std::uint64_t signalled = 0;  // the last that asked for its completion
    std::uint64_t completed = 0;
    transports::RdmaLink& link() noexcept { return control != nullptr ? control->link() : lane->link(); }
  };
  Result<void> wait_until_complete(Lane& lane, std::uint64_t number);
  Result<void> pump(Lane& lane) { return lane.control != nullptr ? lane.control->pump() : lane.lane->pump(); }
  // False: the queue is full.
  Result<bool> post(Lane& lane, transports::RdmaLocal from, transports::RdmaRemote to, bool signalled);
  Result<void> make_room(Lane& lane);
  Result<void> ask_for_completion(Lane& lane);

  std::vector<std::unique_ptr<Lane>> lanes_;
  std::uint64_t posted_ = 0;
};

}  // namespace migrationd::ram
