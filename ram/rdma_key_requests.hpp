// SPDX-License-Identifier: Apache-2.0
//
// RdmaKeyRequests: the source asks for the keys of chunks ahead of the pages that need them (docs/formats/rdma.md).
//
// Why. Registering 1 MiB costs the destination about as long as 1 MiB takes on a line of 100 Gb/s. Who asks for a key,
// waits for it and then writes has the line idle while memory is registered, and memory not registered while the line
// is busy. And a request goes by the queue pair that carries pages: behind whatever was posted before it.
//
// What the protocol allows. A message needs the peer's READY, and the destination says READY when it has answered. So
// one request can be outstanding, no more, whatever it asks for: several chunks where the destination takes that (one
// of our kind), else one. That is enough to keep the destination registering all the time, if the next request is on
// its way as soon as an answer is here, and in front of the pages that this answer lets go:
//
//   source        request 2 | write 1 ........ | request 3 | write 2 ........ | request 4 | write 3
//   destination             | register 2 ..... |           | register 3 ..... |
//
// So pages without a key wait (in the sink, in the order of their chunks) while their batch is over and the next one
// is looked at: at most those of one message's chunks when send() returns. What is found to have a key goes at once.
// Everything is written before a pass or a body ends: then nothing is asked and nothing waits.
//
// A turn:   next()  takes the answer to the last request, sends the next one
//           ...     the caller writes what has got its key
//           register_ours()  our own side of what was just asked for, while the destination does its own
//
// Nothing is asked for on suspicion: a chunk that turns out to be zero costs no memory at the destination.
//
// Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "ram/rdma_channel.hpp"
#include "ram/rdma_keys.hpp"
#include "ram/rdma_writer.hpp"

#include <cstdint>
#include <deque>
#include <vector>

namespace migrationd::ram {

class RdmaKeyRequests {
 public:
  // All of them outlive it.
  RdmaKeyRequests(const RamMap& map, RdmaConnections& connections, RdmaKeys& keys, const RdmaWriter& writes);

  // Its key is needed: a chunk that has none. Asked for once, however often it is wanted.
  void want(std::size_t block, std::uint64_t chunk);
  // It has no key, and was asked for or will be.
  bool wants(std::size_t block, std::uint64_t chunk) const noexcept { return keys_.is_wanted(block, chunk); }

  // Chunks wait to be asked for: next() is due.
  bool due() const noexcept { return !wanted_.empty(); }
  // No request is outstanding and none is due.
  bool idle() const noexcept { return wanted_.empty() && asked_.empty(); }
  // Not while idle(). Errors name the block at the destination.
  Result<void> next();
  Result<void> register_ours();

 private:
  struct Wanted {
    std::size_t block = 0;
    std::uint64_t chunk = 0;
  };

  Result<void> take_answer();
  Result<void> send_request();
  Error at_destination(Error error) const;

  const RamMap& map_;
  RdmaConnections& connections_;
  RdmaKeys& keys_;
  const RdmaWriter& writes_;
  std::deque<Wanted> wanted_;             // not asked for yet
  std::vector<Wanted> asked_;             // in the outstanding request, in its order
  std::uint64_t written_at_request_ = 0;  // writes_.posted() when it was sent
};

}  // namespace migrationd::ram
