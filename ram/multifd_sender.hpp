// SPDX-License-Identifier: Apache-2.0
//
// MultifdSender: the source's channels, a thread for each.
//
// The mover fills in MultifdJobs, pages of one block each, and hands them over; the job belongs to a worker then. The
// worker looks for zero pages if it is to, compresses if it is to, and writes header and pages in one gathered write:
// a page that is not compressed is not copied. A worker holds four jobs at most, the one it works on and the next ones,
// so that it need not wait for the mover, and handing over waits for a place: that is the back-pressure.
//
// synchronise() puts a SYNC behind everything handed over, on every channel, and returns when all has been written.
//
// The first error of a worker is kept, with the channel's number, and raises the migration's stop; the mover's calls
// then fail with `cancelled`, wherever it is, and failure() says why.
//
// Guest memory is read until the job is done; with zero copy, until the next synchronise() is. A page torn by a racing
// write is dirty again and goes in a later pass.
//
// Thread: constructed, destroyed and used by the mover.
#pragma once

#include "base/doorbell.hpp"
#include "base/stop.hpp"
#include "base/thread_roster.hpp"
#include "protocol/stream/multifd_packet.hpp"
#include "ram/channel_crew.hpp"
#include "ram/ram_map.hpp"
#include "transports/channel.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace migrationd::ram {

// Offsets in bytes; data and holes together 1 to multifd_packet_pages.
struct MultifdJob {
  bool sync = false;  // nothing else then
  std::size_t block = 0;
  std::vector<std::uint64_t> data;   // memory is to be read
  std::vector<std::uint64_t> holes;  // known to be zero: memory is not looked at, looking would allocate it
  // Bytes it may become on the wire, at most and for rates.
  std::uint64_t estimate() const noexcept;
};

struct MultifdSenderOptions {
  stream::MultifdMethod method = stream::MultifdMethod::none;
  int level = 1;  // of the method
  // Zero pages are listed in packets; otherwise every page of a job has its bytes there.
  bool zero_pages_in_packets = true;
  // Pages are not copied into the kernel either (method none, over sockets that can do it).
  bool zero_copy = false;
};

class MultifdSender {
 public:
  // Sends the hellos and starts the threads. `channels` by number, 1 to 255. Map, stop and roster outlive the sender.
  static Result<std::unique_ptr<MultifdSender>> start(std::vector<std::unique_ptr<transports::Channel>> channels,
                                                      const stream::Uuid& uuid, MultifdSenderOptions options,
                                                      RamMap& map, StopSource& stop, ThreadRoster& roster);
  // Shuts the channels down and joins: when the migration is finished or has failed.
  ~MultifdSender();

  // Takes the job; what comes back is empty and has its memory. May wait.
  Result<void> hand_over(MultifdJob& job);
  Result<void> synchronise();

  std::optional<Error> failure() const { return failure_.get(); }
  std::uint64_t bytes_sent() const noexcept;
  std::uint64_t normal_pages() const noexcept;
  std::uint64_t zero_pages() const noexcept;
  // Synchronisations of a channel before which the kernel copied all it was to send without a copy.
  std::uint64_t missed_zero_copy() const noexcept;
  // What bytes_sent() will be when all that was handed over is sent, by estimate.
  std::uint64_t bytes_expected() const noexcept;

 private:
  class Worker;
  MultifdSender(std::unique_ptr<Doorbell> progress, MultifdSenderOptions options, RamMap& map, StopSource& stop,
                ThreadRoster& roster) noexcept;
  Result<Worker*> worker_with_room();

  std::unique_ptr<Doorbell> progress_;  // a worker finished a job
  const MultifdSenderOptions options_;
  RamMap& map_;
  StopSource& stop_;
  ThreadRoster& roster_;
  // One series for all channels, as QEMU 10.0 counts.
  std::atomic<std::uint64_t> next_number_{0};
  std::vector<std::unique_ptr<Worker>> workers_;
  std::size_t next_worker_ = 0;
  std::uint64_t estimated_ = 0;
  ChannelFailure failure_;
};

}  // namespace migrationd::ram
