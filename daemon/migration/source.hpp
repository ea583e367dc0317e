// SPDX-License-Identifier: Apache-2.0
//
// MigrationSource: the machine leaves.
//
// run() is a list of phases on the mover thread. Whatever phase fails, settle() decides whose the machine is by the
// point that was reached (docs/architecture.md, "Whose machine is it"), and that is the only place that does:
//
//   before the stop            ours, as it was; also when descriptors of its memory are out: nobody runs it there
//                              before the stream has come
//   stopped, EOF not tried     ours, runs again if it ran
//   EOF tried, return path     answered 0: the peer's. Answered failure: ours, runs again. No answer: unknown, stays
//                              stopped until `cont`
//   EOF written, no return     the peer's; nothing more can be known. (The write failed: unknown, as above)
//     path
//   into a file                ours in any case
//   no answer, and the new     ours, runs again: nobody else can have it (CprHandOver::revoke)
//     process was ended
//   postcopy: package tried    the peer's, whatever comes (postcopy_source.hpp)
//
// By cpr (docs/formats/cpr.md) the machine stands still before the first byte of the stream, and nothing is iterated.
// With cpr-transfer the descriptors of its memory go out first, over a socket of their own, and the new process says by
// closing that socket that it listens on the main channel.
//
// The byte that counts is EOF: a QEMU destination starts the guest when the connection ends after it, description or
// not (stream.md section 10). So everything before EOF is flushed first, and EOF goes out with the description in one
// write.
//
// Thread: constructed on control, run() on the mover.
#pragma once

#include "base/gate.hpp"
#include "base/stop.hpp"
#include "daemon/machine/machine.hpp"
#include "daemon/migration/live_limits.hpp"
#include "daemon/migration/mover_events.hpp"
#include "daemon/migration/plan.hpp"
#include "daemon/migration/postcopy_control.hpp"
#include "daemon/migration/return_path_reader.hpp"
#include "daemon/migration/run_control.hpp"
#include "daemon/migration/switchover_policy.hpp"
#include "protocol/cpr/cpr_state.hpp"
#include "ram/counters.hpp"
#include "ram/multifd_sender.hpp"
#include "ram/page_sink.hpp"
#include "transports/buffered.hpp"
#include "transports/connect.hpp"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::ram {
class RdmaChannel;
class SinkMapped;
}  // namespace migrationd::ram

namespace migrationd::migration {

class PostcopySource;
struct SourceLink;
class PrecopySender;

// What the machine's memory and whatever goes along with it is handed over by (docs/formats/cpr.md).
struct CprHandOver {
  UniqueFd socket;                            // connected to the new process
  std::vector<cpr::NamedDescriptor> extra{};  // behind the machine's own
  // Ends the new process for good, before a machine that could not be handed over goes on here. Without it nobody knows
  // whether a new process that did not answer has the machine. On the mover.
  std::function<void()> revoke{};
};

struct SourceOutcome {
  Result<void> result;
  // What the machine is after settle(); `ours` may run again.
  Ownership ownership = Ownership::ours;
  // The guest was started again after the failure: RESUME is still to be emitted.
  bool resumed = false;
};

class MigrationSource {
 public:
  // What it works on outlives it. `continue_gate` is opened by migrate-continue.
  MigrationSource(SourcePlan plan, transports::OutgoingTarget target, std::optional<stream::Uuid> own_uuid,
                  Machine& machine, RunControl& run_control, const LiveLimits& limits, Progress& progress,
                  MoverEvents& events, StopSource& stop, Gate& continue_gate, PostcopyControl& postcopy_control);
  ~MigrationSource();

  // Before run(), of a plan by_descriptors.
  void hand_over_by(CprHandOver hand_over) {
    revoke_ = std::move(hand_over.revoke);
    cpr_ = std::move(hand_over);
  }

  SourceOutcome run();

 private:
  enum class Point { before_stop, stopped, eof_tried, answered, handed_over };

  Result<void> run_phases();
  Result<void> run_stopped_phases();
  Result<void> hand_over_descriptors();
  Result<void> connect();
  Result<void> connect_over_rdma();
  Result<void> connect_channels();
  void publish_channels() noexcept;
  Result<void> open_stream();
  Result<void> set_up_memory();
  Result<std::unique_ptr<ram::PageSink>> make_sink(ram::SendCounters& counters);
  Result<void> iterate();
  // Postcopy was asked for, and the machine may be stopped.
  Result<bool> postcopy_is_due();
  Result<void> prepare_postcopy();
  Result<void> go_by_postcopy();
  SourceLink lend_link();
  void take_back(SourceLink link);
  Result<void> stop_machine();
  Result<void> wait_in_pre_switchover();
  Result<void> await_word();
  Result<void> send_rest();
  Result<void> send_devices();
  Result<void> send_end();
  Result<void> await_answer();

  SourceOutcome settle(Result<void> result);
  Result<void> prefer_peers_word(Result<void> result);
  bool revoke();
  // A guest that is another process, and goes to another daemon of this host.
  bool passes_guest() const noexcept { return plan_.to_successor && machine_.goes_on_alone(); }
  void tell_guest(MachineOutcome what, const std::string& why) noexcept;

  SourcePlan plan_;
  transports::OutgoingTarget target_;
  std::optional<stream::Uuid> own_uuid_;  // --uuid
  Machine& machine_;
  RunControl& run_control_;
  const LiveLimits& limits_;
  Progress& progress_;
  MoverEvents& events_;
  StopSource& stop_;
  Gate& continue_gate_;
  PostcopyControl& postcopy_control_;
  std::optional<CprHandOver> cpr_;
  std::function<void()> revoke_;

  Clock::time_point started_ = Clock::now();
  Clock::time_point stopped_at_{};
  std::optional<Clock::time_point> written_at_;  // one-way targets: all bytes handed over
  Point point_ = Point::before_stop;
  bool peer_refused_ = false;
  std::unique_ptr<transports::Channel> channel_;
  ram::RdmaChannel* rdma_ = nullptr;              // the same channel, until postcopy takes it
  std::unique_ptr<transports::Channel> preempt_;  // made at once
  std::unique_ptr<PostcopySource> postcopy_;      // before what its thread of the return path listens with
  bool postcopy_prepared_ = false;
  // mapped-ram: the same channel, and the file's descriptor for pages.
  transports::SeekableChannel* file_ = nullptr;
  UniqueFd page_fd_;
  std::unique_ptr<transports::BufferedWriter> writer_;
  std::unique_ptr<ReturnPathReader> return_path_;
  std::unique_ptr<ram::MultifdSender> multifd_;
  std::unique_ptr<PrecopySender> sender_;
  const ram::SinkMapped* mapped_sink_ = nullptr;  // the sender's
  std::optional<std::string> description_;
  std::uint64_t sent_before_ = 0;  // bytes of the stream before the hand-over by postcopy
};

}  // namespace migrationd::migration
