// SPDX-License-Identifier: Apache-2.0
//
// SinkRdma: pages by one-sided writes into the destination's memory (docs/formats/rdma.md).
//
// The stream carries no page. Each body of a RAM section begins with a HOOK record; at it both sides leave the stream
// and exchange control messages until REGISTER FINISHED:
//
//   START       the destination's blocks are asked for: where each lies, and its key if all is pinned
//   PART, END   any number of COMPRESS (a range is zero) and REGISTER REQUEST (a chunk is to be written), and writes
//   that
//               the destination's CPU does not see; all of them are complete before REGISTER FINISHED
//
// A batch is cut at the chunks' bounds; within a chunk, neighbouring pages are one write. A range in a chunk that the
// destination has not registered yet is looked at: if all of it is zero, it costs a message and no memory there. With a
// destination of our kind, one message tells of zeros in several chunks, and one asks for the keys of several; QEMU's
// gets one each. Once a chunk is registered, or asked for, its zeros are written like anything else; holes are never
// read, they are written from a piece of zeros.
//
// Keys are asked for ahead (rdma_key_requests.hpp): pages whose chunk's key is on its way wait when send() returns, and
// go behind the request for the next ones; all of them before the body or the pass ends. They are read then: what a
// batch says is which pages, not which bytes.
//
// Two writes into one page are never under way together, since a pass has each page once and finish_pass() waits for
// all: so many writes of one chunk may be, on any queue pair.
//
// Thread: the mover.
#pragma once

#include "base/stop.hpp"
#include "ram/counters.hpp"
#include "ram/pacer.hpp"
#include "ram/page_sink.hpp"
#include "ram/ram_map.hpp"
#include "ram/rdma_channel.hpp"
#include "ram/rdma_key_requests.hpp"
#include "ram/rdma_keys.hpp"
#include "ram/rdma_writer.hpp"
#include "transports/buffered.hpp"

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

namespace migrationd::ram {

class SinkRdma final : public PageSink {
 public:
  struct Options {
    // Holes never sent before are left out; the destination must start from empty memory.
    bool skip_holes = false;
    // The guest may give memory back while it runs: see rdma_keys.hpp. Its own memory is then not pinned as a whole.
    bool memory_may_go = false;
    // Of a stream that advises postcopy: bytes of the destination's pages, per block. Empty: none.
    std::vector<std::uint64_t> page_sizes = {};
  };

  // All of them outlive it; `writer` is over the channel that has the connections.
  SinkRdma(RamMap& map, transports::BufferedWriter& writer, RdmaConnections& connections, const StopSource& stop,
           SendCounters& counters, Options options);
  // Logs what the keys cost.
  ~SinkRdma() override;

  void limit_by(RateLimiter* limiter) noexcept override { pacer_.limit_by(limiter); }
  // With the exchange that belongs to it.
  Result<void> write_block_list() override;
  Result<void> send(const PageBatch& batch) override;
  Result<void> finish_pass() override;
  Result<void> end_memory() override { return {}; }
  // Everything of this body is in the destination's memory.
  Result<void> end_body() override;
  std::uint64_t bytes_sent() const noexcept override { return counters_.transferred.get(); }
  std::uint64_t bytes_beside_stream() const noexcept override { return written_bytes_; }

 private:
  // Contiguous bytes within one chunk.
  struct Piece {
    std::size_t block = 0;
    std::uint64_t chunk = 0;
    std::uint64_t offset = 0;  // in the block
    std::uint64_t length = 0;
    bool zero = false;  // not to be read
  };

  Result<void> open_body();
  Result<void> exchange_blocks();
  Result<void> pin_blocks();
  void cut(const PageBatch& batch);
  bool is_zero(const Piece& piece) const noexcept;
  // One message for a range; nothing for an empty one.
  Result<void> send_zeros(const Piece& piece);
  Result<void> add_zeros(Piece& zeros, const Piece& piece);
  // Leaves in pieces_ what can be written at once; the rest is told of as zero, or waits for its key.
  Result<void> sort_pieces();
  // A turn of rdma_key_requests.hpp.
  Result<void> ask_and_write();
  // Nothing waits any more.
  Result<void> write_all();
  Result<void> write_piece(const Piece& piece);
  Result<transports::RdmaLocal> memory_of(const Piece& piece);
  Result<void> account(std::uint64_t bytes);

  RamMap& map_;
  transports::BufferedWriter& writer_;
  RdmaConnections& connections_;
  SendCounters& counters_;
  const Options options_;
  Pacer pacer_;
  RdmaKeys keys_;
  RdmaWriter writes_;
  RdmaKeyRequests requests_;
  // A chunk of zeros, registered when the first hole has to be written.
  std::unique_ptr<std::byte[]> zeros_;
  std::unique_ptr<transports::RdmaRegion> zeros_region_;
  bool body_open_ = false;     // HOOK was written, REGISTER FINISHED not yet
  bool body_done_ = false;     // both were, for the body that end_body() will end
  std::vector<Piece> pieces_;  // of the batch
  std::deque<Piece> waiting_;  // for their chunks' keys, in the order in which those are asked for
  std::uint64_t written_bytes_ = 0;
};

}  // namespace migrationd::ram
