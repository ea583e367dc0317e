// SPDX-License-Identifier: Apache-2.0
//
// RunControl: is the machine running, should it, and whose is it.
//
// Two threads want to start and stop a machine: control (`stop`, `cont`) and the mover (the switchover). RunControl
// is the one place where they meet; its mutex is held only around Machine::pause()/resume(), which take a
// millisecond, or a hung guest's deadline where that is another process. Queries never wait for it. It also keeps the
// names: the run state that query-status shows, and the one that the globalstate section of an outgoing stream carries
// (stream.md section 6).
//
// Whose the machine is (docs/architecture.md, "Whose machine is it"):
//   ours         it may run here
//   handed_over  a peer has it: query-status says postmigrate; only `cont`, the explicit word, makes it ours again
//   unknown      the last byte went out and no answer came: it stays stopped until `cont`
//
// Thread: any. Emits nothing itself: callers emit STOP and RESUME when told that something changed.
#pragma once

#include "base/result.hpp"
#include "daemon/machine/machine.hpp"
#include "protocol/qmp/migration_info.hpp"

#include <atomic>
#include <mutex>
#include <optional>
#include <string>

namespace migrationd::migration {

enum class Ownership : std::uint8_t { none, ours, handed_over, unknown };

class RunControl {
 public:
  // An empty daemon, or one that waits for its machine: inmigrate.
  explicit RunControl(bool start_when_loaded) noexcept : start_when_loaded_(start_when_loaded) {}

  // --- control ----------------------------------------------------------------------------------------------
  qmp::RunState state() const;
  Ownership ownership() const;
  // The machine exists from now on: it has never run (prelaunch), rests (paused) or runs.
  void adopt(Machine& machine, qmp::RunState state = qmp::RunState::prelaunch);
  // There is no machine, or an empty one, and one may come.
  void await_machine();
  // The machine was dropped. One that left stays known to have left.
  void machine_gone();
  // True: it was running and is stopped now (STOP is to be emitted).
  Result<bool> stop();
  // True: it was stopped and runs now (RESUME is to be emitted). Refuses during a switchover with QEMU's text.
  Result<bool> cont();

  // --- a worker that examines the memory: the machine stands still between the two, whatever state() says -----
  Result<void> hold();
  Result<void> release();

  // --- mover, source ----------------------------------------------------------------------------------------
  // May this machine leave? QEMU's texts for inmigrate and postmigrate.
  Result<void> check_may_migrate() const;
  // Stops the machine for the switchover: finish-migrate. True: it ran (STOP is to be emitted). `passing`: its guest
  // goes on alone (Machine::let_go), and nothing is to be emitted.
  Result<bool> begin_switchover(bool passing = false);
  // The name for the globalstate section of the stream: what the next holder shall do.
  std::string outgoing_state_name() const;
  // The package of a postcopy is out: the machine is the peer's, though its memory is still here. State stays
  // finish-migrate until finish_switchover.
  void leave_by_postcopy();
  // Undoes begin_switchover: the machine is ours and goes on as it was. True: it runs (RESUME is to be emitted).
  Result<bool> abort_switchover();
  // The machine left (handed_over), nobody knows (unknown), or it was saved to a file and stays (ours).
  void finish_switchover(Ownership ownership);

  // --- mover, destination -----------------------------------------------------------------------------------
  // The stream was checked to its end; `received_state`: what globalstate said, if it was there.
  void incoming_loaded(Machine& machine, std::optional<std::string> received_state);
  // After the answer to the source: starts the machine if its state and ours ask for it. True: RESUME is to be
  // emitted.
  Result<bool> start_if_wanted();
  // A postcopy ended without its memory: there is no machine any more.
  void incoming_lost();

 private:
  Result<bool> run_locked();

  // Shared by control and the mover, see above.
  mutable std::mutex mutex_;
  Machine* machine_ = nullptr;
  // Written under the mutex.
  std::atomic<qmp::RunState> state_{qmp::RunState::inmigrate};
  std::atomic<Ownership> ownership_{Ownership::none};
  bool start_when_loaded_;
  bool held_ = false;
  bool passing_ = false;  // since begin_switchover: the machine was let go of
  // What abort_switchover restores.
  qmp::RunState state_before_ = qmp::RunState::prelaunch;
  // The name for the next stream: a received one is kept verbatim until `stop` or `cont` says otherwise.
  std::string state_name_ = "prelaunch";
};

}  // namespace migrationd::migration
