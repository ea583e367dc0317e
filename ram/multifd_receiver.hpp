// SPDX-License-Identifier: Apache-2.0
//
// MultifdReceiver: the destination's channels, a thread for each, and what ties them to the main stream.
//
// A channel's thread reads packets for ever: the header is checked, *every* offset of the packet is proved, then the
// pages are received, straight into guest memory where PageStore::receive_in_place() allows it, else through a buffer;
// zero pages are stored as such; behind a SYNC it waits for the main stream.
//
// Which places of the main stream are barriers is the source's choice and nowhere said. Both ways begin with one in
// the START section, and there they can be told apart: a FLUSH record makes the barriers those records, at least one
// of them in the END section; without one every end of a RAM section is a barrier.
//
// A SYNC that does not come though the main stream is at its mark, and no byte on any channel for `barrier_patience`,
// is a source with another idea of barriers, or one that lost a packet: QEMU waits for ever there (multifd.md 8.3).
//
// The first error of a channel is kept, with the channel's number, and raises the migration's stop, so that the mover
// fails at once wherever it is. After the last section nothing that a channel does matters, but for pages, which would
// be missing in a machine declared complete. The channels stay open until this object ends: a source of QEMU 7.2 still
// sends an empty packet behind its last SYNC.
//
// Thread: constructed, destroyed and asked by the mover.
#pragma once

#include "base/stop.hpp"
#include "base/thread_roster.hpp"
#include "protocol/stream/multifd_packet.hpp"
#include "ram/channel_crew.hpp"
#include "ram/multifd_barrier.hpp"
#include "ram/page_store.hpp"
#include "ram/ram_map.hpp"
#include "transports/channel.hpp"

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace migrationd::ram {

// What a retransmission holds up comes within that: after six lost in a row TCP has waited for 12 seconds.
inline constexpr auto barrier_patience = std::chrono::seconds(30);

class MultifdReceiver {
 public:
  // `channels` by number, their hellos read. The others outlive the receiver; the store may be used by several threads.
  static Result<std::unique_ptr<MultifdReceiver>> start(std::vector<std::unique_ptr<transports::Channel>> channels,
                                                        stream::MultifdMethod method, RamMap& map, PageStore& store,
                                                        StopSource& stop, ThreadRoster& roster);
  // Shuts the channels down and joins.
  ~MultifdReceiver();

  // --- places of the main stream, in its order ------------------------------------------------------------------
  // A FLUSH record.
  Result<void> at_flush();
  // The section that begins is the last.
  void begin_last_section();
  // The EOS record of a section.
  Result<void> at_end_of_section();

  // For tests.
  void be_patient_for(std::chrono::milliseconds limit) noexcept { barrier_patience_ = limit; }

  // Why the stop was raised, if a channel did it.
  std::optional<Error> failure() const { return failure_.get(); }
  std::uint64_t bytes_received() const noexcept;
  std::uint64_t normal_pages() const noexcept;
  std::uint64_t zero_pages() const noexcept;

 private:
  class Worker;
  enum class Mode : std::uint8_t { unknown, per_flush, per_section };

  MultifdReceiver(std::unique_ptr<MultifdBarrier> barrier, StopSource& stop, ThreadRoster& roster) noexcept;

  Result<void> meet();

  std::unique_ptr<MultifdBarrier> barrier_;
  ThreadRoster& roster_;
  std::vector<std::unique_ptr<Worker>> workers_;
  Mode mode_ = Mode::unknown;
  bool flushed_ = false;  // in this section
  bool last_section_ = false;
  std::chrono::milliseconds barrier_patience_ = barrier_patience;
  ChannelFailure failure_;
};

}  // namespace migrationd::ram
