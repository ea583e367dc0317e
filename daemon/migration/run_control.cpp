// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/run_control.hpp"

#include <utility>

namespace migrationd::migration {

using qmp::RunState;

RunState RunControl::state() const { return state_; }

Ownership RunControl::ownership() const { return ownership_; }

void RunControl::adopt(Machine& machine, RunState state) {
  const std::lock_guard lock(mutex_);
  machine_ = &machine;
  state_ = state;
  state_name_ = qmp::to_name(state);
  ownership_ = Ownership::ours;
}

void RunControl::await_machine() {
  const std::lock_guard lock(mutex_);
  machine_ = nullptr;
  ownership_ = Ownership::none;
  state_ = RunState::inmigrate;
}

void RunControl::machine_gone() {
  const std::lock_guard lock(mutex_);
  machine_ = nullptr;
  if (ownership_ == Ownership::handed_over || ownership_ == Ownership::unknown) return;
  ownership_ = Ownership::none;
  state_ = RunState::inmigrate;
}

Result<bool> RunControl::stop() {
  const std::lock_guard lock(mutex_);
  if (state_ == RunState::inmigrate) {
    start_when_loaded_ = false;
    return false;
  }
  if (passing_) return machine_error("The machine is being handed over to another daemon");
  if (state_ == RunState::finish_migrate && state_before_ == RunState::running) {
    // It stands still already, and its STOP was told. It stays so wherever it ends up: here, or with the peer if its
    // state has not been written yet.
    state_before_ = RunState::paused;
    state_name_ = "paused";
    return false;
  }
  if (state_ != RunState::running) return false;
  MD_CHECK(machine_->pause());
  state_ = RunState::paused;
  state_name_ = "paused";
  return true;
}

Result<bool> RunControl::cont() {
  const std::lock_guard lock(mutex_);
  if (state_ == RunState::inmigrate) {
    start_when_loaded_ = true;
    return false;
  }
  if (state_ == RunState::running) return false;
  if (state_ == RunState::finish_migrate) return machine_error("Migration is not finalized yet");
  return run_locked();
}

Result<bool> RunControl::run_locked() {
  if (machine_ == nullptr) return machine_error("There is no machine any more: its guest is gone");
  if (ownership_ != Ownership::ours) machine_->note_outcome(MachineOutcome::stays, "'cont' was said here");
  if (!held_) MD_CHECK(machine_->resume());
  state_ = RunState::running;
  state_name_ = "running";
  ownership_ = Ownership::ours;
  return true;
}

Result<void> RunControl::hold() {
  const std::lock_guard lock(mutex_);
  if (state_ == RunState::running) MD_CHECK(machine_->pause());
  held_ = true;
  return {};
}

Result<void> RunControl::release() {
  const std::lock_guard lock(mutex_);
  if (!held_) return {};
  held_ = false;
  if (state_ == RunState::running) MD_CHECK(machine_->resume());
  return {};
}

Result<void> RunControl::check_may_migrate() const {
  const std::lock_guard lock(mutex_);
  if (state_ == RunState::inmigrate) return machine_error("Guest is waiting for an incoming migration");
  if (machine_ == nullptr) return machine_error("There is no machine any more: its guest is gone");
  // A save to a file left the machine here; a parked one may go at once, one that runs needs `cont` as in QEMU.
  const bool saved_parked = ownership_ == Ownership::ours && machine_->kind() == MachineKind::parked;
  if (state_ == RunState::postmigrate && !saved_parked) {
    return machine_error("Can't migrate the vm that was paused due to previous migration");
  }
  if (ownership_ == Ownership::unknown) {
    return machine_error(
        "Can't migrate the vm: the outcome of the previous migration is unknown, the peer may run it ('cont' makes it "
        "this side's again)");
  }
  return {};
}

Result<bool> RunControl::begin_switchover(bool passing) {
  const std::lock_guard lock(mutex_);
  state_before_ = state_;
  const bool ran = state_ == RunState::running;
  if (passing) {
    MD_CHECK(machine_->let_go());
  } else if (ran) {
    MD_CHECK(machine_->pause());
  }
  passing_ = passing;
  state_ = RunState::finish_migrate;
  return ran && !passing;
}

std::string RunControl::outgoing_state_name() const {
  const std::lock_guard lock(mutex_);
  return state_name_;
}

Result<bool> RunControl::abort_switchover() {
  const std::lock_guard lock(mutex_);
  if (state_ != RunState::finish_migrate) return false;
  ownership_ = Ownership::ours;
  if (std::exchange(passing_, false)) {
    machine_->take_up();
    state_ = state_before_;
    return false;
  }
  // Paused until the guest really runs: query-status does not claim more than is so.
  state_ = state_before_ == RunState::running ? RunState::paused : state_before_;
  if (state_before_ != RunState::running) return false;
  MD_CHECK(machine_->resume());
  state_ = RunState::running;
  return true;
}

void RunControl::leave_by_postcopy() {
  const std::lock_guard lock(mutex_);
  ownership_ = Ownership::handed_over;
}

void RunControl::finish_switchover(Ownership ownership) {
  const std::lock_guard lock(mutex_);
  passing_ = false;
  ownership_ = ownership;
  // "unknown" is not postmigrate: nobody said that the machine left. It is paused, and says why.
  state_ = ownership == Ownership::unknown ? RunState::paused : RunState::postmigrate;
}

void RunControl::incoming_loaded(Machine& machine, std::optional<std::string> received_state) {
  const std::lock_guard lock(mutex_);
  machine_ = &machine;
  ownership_ = Ownership::ours;
  state_name_ = received_state.value_or("running");
  if (state_name_ == "running") {
    state_ = RunState::paused;
    if (!start_when_loaded_) state_name_ = "paused";
  } else {
    // The name travels on verbatim; here only the states that query-status knows for a stopped machine are told apart.
    state_ = state_name_ == "prelaunch" ? RunState::prelaunch : RunState::paused;
  }
}

Result<bool> RunControl::start_if_wanted() {
  const std::lock_guard lock(mutex_);
  if (!start_when_loaded_ || state_name_ != "running") return false;
  return run_locked();
}

void RunControl::incoming_lost() {
  const std::lock_guard lock(mutex_);
  machine_ = nullptr;
  ownership_ = Ownership::none;
  state_ = RunState::inmigrate;
}

}  // namespace migrationd::migration
