// SPDX-License-Identifier: Apache-2.0
//
// PostcopyDestination: the machine arrives before its memory has (docs/spec/postcopy.md).
//
// From ADVISE on it knows what was received. receive_package() reads the devices whole; complete() then is the rest of
// the migration:
//
//   listen   faults on what is missing are caught, the pages' readers start        (postcopy-active)
//   load     the devices; they may wait for pages
//   run      the guest starts. A parked machine starts nothing: its missing pages are asked for one by one, and the
//            postcopy is completed as a pull
//   receive  until everything is here. When the connection breaks nothing is given up: the guest runs on what it has,
//            who needs more waits (postcopy-paused), and a new connection (migrate-recover) goes on from there
//   end      what never came is zero; the source is told
//
// Whose the machine is: the source's until its package has been read to its last byte, ours from then on. The source
// never runs it again, so nothing but the daemon's end gives it up, and then only by leaving the waiters asleep: nobody
// ever reads a page of zeros that is none.
//
// Thread: the mover. listen, preempt, fault thread and puller are its workers (docs/architecture.md, section 4).
#pragma once

#include "base/stop.hpp"
#include "daemon/machine/machine.hpp"
#include "daemon/machine/receiver.hpp"
#include "daemon/migration/mover_events.hpp"
#include "daemon/migration/plan.hpp"
#include "daemon/migration/recovery_control.hpp"
#include "daemon/migration/run_control.hpp"
#include "postcopy/destination_package.hpp"
#include "postcopy/destination_pages.hpp"
#include "postcopy/destination_state.hpp"
#include "postcopy/fault_thread.hpp"
#include "postcopy/guest_memory.hpp"
#include "postcopy/noting_store.hpp"
#include "postcopy/page_puller.hpp"
#include "postcopy/page_receiver.hpp"
#include "postcopy/return_channel.hpp"
#include "transports/buffered.hpp"
#include "transports/channel.hpp"

#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace migrationd::migration {

// One set of connections. The readers go before what they read.
struct DestinationLink {
  std::unique_ptr<transports::Channel> main;
  std::unique_ptr<transports::Channel> preempt;
  std::unique_ptr<transports::BufferedReader> reader;
  std::unique_ptr<transports::BufferedReader> preempt_reader;
};

class PostcopyDestination {
 public:
  // `plan`: nothing when the capability is off. All of them outlive it.
  PostcopyDestination(std::optional<PostcopyArrivalPlan> plan, MachineReceiver& receiver, RunControl& run_control,
                      Progress& progress, MoverEvents& events, StopSource& stop, RecoveryControl& control);
  ~PostcopyDestination();

  bool advised() const noexcept { return state_.advised(); }
  bool wants_preempt() const noexcept { return plan_ && plan_->preempt; }

  // --- while the source's guest runs ---------------------------------------------------------------------------
  Result<void> advise(const stream::command::PostcopyAdvise& advise, bool memory_began);
  // The block list was read and the machine has its memory: empties it. Only after advise().
  Result<void> begin_memory(Machine& machine, std::span<const stream::RamSetupBlock> blocks);
  // Where pages go that come before the switch; `store` outlives it. The same store without advise().
  ram::PageStore& noting(ram::PageStore& store);
  Result<void> discard(const stream::command::PostcopyRamDiscard& discard);
  Result<void> end_as_precopy() const { return state_.end_as_precopy(); }

  // --- the switch ------------------------------------------------------------------------------------------------
  // Reads and takes apart the bytes behind PACKAGED. An error leaves the machine with the source.
  Result<void> receive_package(const stream::command::Packaged& packaged, transports::BufferedReader& reader,
                               std::uint32_t ram_section_id, std::span<const DeviceSection> early);
  bool has_package() const noexcept { return package_.has_value(); }
  // To the end; see the top. Error before RUN: nothing ran. Error after it: the stop only, and lost() is true.
  Result<void> complete(DestinationLink link, std::vector<DeviceSection> early);

  // The machine was ours and its memory will never be whole.
  bool lost() const noexcept { return lost_; }
  // And its guest waits for the rest: nobody may free or reuse what there is.
  bool stranded() const noexcept { return stranded_; }
  // With the capability postcopy-blocktime, once complete() has returned.
  std::optional<postcopy::BlocktimeReport> blocktime() const { return blocktime_; }

 private:
  Result<void> listen();
  Result<void> start_receiving();
  Result<void> load_and_run(std::vector<DeviceSection> early);
  Result<void> receive_all();
  void close_link();
  void lose();
  void count_received();
  void recover(Error why);
  Result<void> reconnect();
  Result<void> connect(RecoveryControl::Offer& offer);
  Result<void> accept_urgent(RecoveryControl::Offer& offer);
  Result<void> shake_hands(RecoveryControl::Offer& offer);
  Result<bool> answer_handshake(const stream::Command& command);
  Result<void> ask_again();
  Result<void> finish();
  void undo_listen();

  const std::optional<PostcopyArrivalPlan> plan_;
  MachineReceiver& receiver_;
  RunControl& run_control_;
  Progress& progress_;
  MoverEvents& events_;
  StopSource& stop_;
  RecoveryControl& control_;

  postcopy::DestinationState state_;
  Machine* machine_ = nullptr;
  std::uint32_t ram_section_id_ = 0;
  std::vector<postcopy::BlockShape> placed_;  // what is placed as a whole
  std::unique_ptr<postcopy::DestinationPages> pages_;
  std::unique_ptr<postcopy::NotingStore> noting_;
  std::optional<postcopy::Package> package_;
  bool lost_ = false;
  bool stranded_ = false;
  std::optional<postcopy::BlocktimeReport> blocktime_;

  // From listen() on; destroyed in the opposite order.
  std::unique_ptr<postcopy::ReturnChannel> return_channel_;
  std::unique_ptr<postcopy::PagePlacer> placer_;
  postcopy::GuestMemory* guest_memory_ = nullptr;  // the placer, where a guest runs
  postcopy::IntakeCounters counters_;
  DestinationLink link_;
  std::unique_ptr<postcopy::FaultThread> faults_;
  std::unique_ptr<postcopy::PagePuller> puller_;
  std::unique_ptr<postcopy::PageReceiver> pages_reader_;
};

}  // namespace migrationd::migration
