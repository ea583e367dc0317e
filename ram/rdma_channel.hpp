// SPDX-License-Identifier: Apache-2.0
//
// RdmaChannel: the migration stream over control messages (docs/formats/rdma.md), and the owner of all connections of
// one migration over RDMA.
//
// Bytes written become QEMU FILE messages of at most 32768 bytes; their boundaries mean nothing. The reader keeps the
// unread rest of the last one and asks for the next only when it is empty: it never asks ahead, for behind the end
// there is nothing, and in a RAM section the next message may be none of the stream's.
//
// One direction has one connection. The main one carries the stream; the return path, if there is one, is a second one
// made by the source, on which the destination writes. The source reads it through an inbox (rdma_inbox.hpp).
//
// Thread: as a Channel: one reader, one writer, shutdown() by any.
#pragma once

#include "protocol/rdma/hello.hpp"
#include "ram/rdma_control.hpp"
#include "ram/rdma_lane.hpp"
#include "transports/channel.hpp"

#include <chrono>
#include <memory>
#include <vector>

namespace migrationd::ram {

class RdmaInbox;

enum class RdmaSide : std::uint8_t { source, destination };

// Established. Destroyed in the order that lets go of shared domains last.
struct RdmaConnections {
  std::unique_ptr<RdmaControl> main;
  std::unique_ptr<RdmaControl> return_path;
  std::vector<std::unique_ptr<RdmaLane>> lanes;
  bool pin_all = false;
  bool large_requests = false;  // the destination is one of ours (protocol/rdma/hello.hpp)
  // Of the source: requests for keys, and those of them whose answer was awaited with no page write posted behind them:
  // the line may have been idle meanwhile (rdma_key_requests.hpp).
  std::uint64_t key_requests = 0;
  std::uint64_t bare_key_requests = 0;
};

// Numbers of RdmaCounters over all connections of a migration.
struct RdmaTotals {
  std::uint64_t control_messages = 0;  // both directions
  std::uint64_t control_bytes = 0;
  std::uint64_t writes = 0;
  std::uint64_t written_bytes = 0;
  std::uint64_t registrations = 0;
  std::uint64_t registered_bytes = 0;
  std::uint64_t completions = 0;
  std::uint64_t waits = 0;
  std::uint64_t queue_pairs = 0;  // for pages
};

class RdmaChannel final : public transports::Channel {
 public:
  ~RdmaChannel() override;
  static Result<std::unique_ptr<RdmaChannel>> make(RdmaSide side, RdmaConnections connections);

  Result<std::size_t> read(std::span<const iovec> into) override;
  Result<void> write(std::span<const iovec> from) override;
  void shutdown() noexcept override;
  // What was written has arrived; then the connection ends.
  Result<void> finish_writing() override;
  bool bidirectional() const noexcept override { return connections_.return_path != nullptr; }
  bool is_file() const noexcept override { return false; }
  Result<void> sync_to_disk() override { return {}; }
  std::string describe() const override { return connections_.main->link().describe(); }
  // There is none: readiness to read shows only after READY was said. wait_for_bytes() says it.
  int readable_fd() const noexcept override { return -1; }

  // The destination's. False: nothing came within `limit`. Reader's thread.
  Result<bool> wait_for_bytes(std::chrono::milliseconds limit);

  // Nothing of the last message is unread. Reader's thread.
  bool at_message_end() const noexcept { return rest_.empty(); }

  RdmaConnections& connections() noexcept { return connections_; }
  // The peer's messages on the connection we read are those of QEMU 7.2 (as its QEMU FILE messages show).
  bool peer_is_old() const noexcept;
  // This side fails: the last word on the return path (destination; empty: none), then ERROR on the main connection.
  void say_failure(ByteView last_word) noexcept;
  RdmaTotals totals() const noexcept;

 private:
  RdmaChannel(RdmaSide side, RdmaConnections connections);
  RdmaControl* reading() const noexcept {
    return side_ == RdmaSide::source ? connections_.return_path.get() : connections_.main.get();
  }
  RdmaControl* writing() const noexcept {
    return side_ == RdmaSide::source ? connections_.main.get() : connections_.return_path.get();
  }

  const RdmaSide side_;
  RdmaConnections connections_;
  std::unique_ptr<RdmaInbox> inbox_;  // source with a return path
  ByteView rest_;                     // of the message that is being read
  std::vector<ByteView> part_;
  bool heard_ = false;  // something was written: the peer has said READY
};

}  // namespace migrationd::ram
