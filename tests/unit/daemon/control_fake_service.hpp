// SPDX-License-Identifier: Apache-2.0
//
// A MigrationService without a machine, for tests of the control socket: it keeps settings and a run state, writes
// down what it is asked, and answers slow questions when the test says so.
#pragma once

#include "daemon/control/event_bus.hpp"
#include "daemon/migration/service.hpp"

#include <string>
#include <utility>
#include <vector>

namespace migrationd::control {

class FakeService final : public migration::MigrationService {
 public:
  explicit FakeService(EventBus& events) : events_(events) {}

  std::vector<std::string> calls;
  std::vector<std::function<void(Result<nlohmann::json>)>> verifying;
  std::vector<std::function<void(Result<std::uint64_t>)>> measuring;
  bool busy = false;
  UniqueFd taken;

  const qmp::Capabilities& capabilities() const override { return capabilities_; }
  const qmp::MigrationParameters& parameters() const override { return parameters_; }
  Result<void> replace_capabilities(const qmp::Capabilities& capabilities) override {
    capabilities_ = capabilities;
    return {};
  }
  void replace_parameters(const qmp::MigrationParameters& parameters) override { parameters_ = parameters; }
  bool incoming_started() const override { return false; }

  Result<void> migrate(const transports::Address& address, const std::optional<transports::Address>& cpr, bool resume,
                       transports::FdSource& fds) override {
    calls.push_back("migrate " + transports::to_string(address) + (cpr ? " cpr " + transports::to_string(*cpr) : "") +
                    (resume ? " resume" : ""));
    events_.migration(qmp::MigrationStatus::setup);
    if (const auto* fd = std::get_if<transports::FdAddress>(&address)) {
      MD_TRY(taken, fds.take_named(fd->name));
    }
    return {};
  }
  Result<void> migrate_incoming(const transports::Address& address, bool exit_on_error,
                                transports::FdSource&) override {
    calls.push_back("incoming " + transports::to_string(address) + (exit_on_error ? " exit" : ""));
    return {};
  }
  Result<void> cancel() override { return note("cancel"); }
  Result<void> continue_from(qmp::MigrationStatus state) override {
    return note("continue " + std::string(qmp::to_name(state)));
  }
  Result<void> start_postcopy() override { return note("postcopy"); }
  Result<void> pause_migration() override { return machine_error("nothing to pause"); }
  Result<void> recover(const transports::Address& address, transports::FdSource&) override {
    return note("recover " + transports::to_string(address));
  }
  bool in_progress() const override { return busy; }
  Result<void> yank() override { return note("yank"); }
  qmp::MigrationInfo info() const override { return {}; }
  std::vector<Thread> threads() const override { return {{"mover", 42}}; }

  qmp::RunState run_state() const override { return state_; }
  Result<void> stop() override {
    if (std::exchange(state_, qmp::RunState::paused) == qmp::RunState::running) events_.stop();
    return {};
  }
  Result<void> cont() override {
    if (std::exchange(state_, qmp::RunState::running) != qmp::RunState::running) events_.resume();
    return {};
  }

  Result<qmp::MachineInfo> query_machine() const override {
    qmp::MachineInfo info;
    info.kind = "parked";
    info.owner = qmp::MachineOwner::here;
    info.blocks.emplace_back().name = "pc.ram";
    info.blocks.back().size = info.ram_total = 4096;
    return info;
  }
  void verify_machine(std::function<void(Result<nlohmann::json>)> done) override {
    verifying.push_back(std::move(done));
  }
  void measure_dirty_rate(std::chrono::milliseconds, std::function<void(Result<std::uint64_t>)> done) override {
    measuring.push_back(std::move(done));
  }

 private:
  Result<void> note(std::string call) {
    calls.push_back(std::move(call));
    return {};
  }

  EventBus& events_;
  qmp::Capabilities capabilities_;
  qmp::MigrationParameters parameters_;
  qmp::RunState state_ = qmp::RunState::running;
};

}  // namespace migrationd::control
