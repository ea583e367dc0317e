// SPDX-License-Identifier: Apache-2.0
//
// Run: one migration at work. Private to DaemonService.
//
// What the mover touches is made before its thread starts and freed after it was joined.
#pragma once

#include "daemon/migration/daemon_service.hpp"

#include <thread>

namespace migrationd::migration {

// Posts what the mover says to control, in order.
class DaemonService::PostingEvents final : public MoverEvents {
 public:
  explicit PostingEvents(DaemonService& service) noexcept : service_(service) {}
  void status(qmp::MigrationStatus status) override {
    service_.post_([&service = service_, status] { service.take_status(status); });
  }
  void pass(std::uint64_t number) override {
    service_.post_([&service = service_, number] { service.take_pass(number); });
  }
  void guest_stopped() override {
    service_.post_([&service = service_] { service.events_.stop(); });
  }
  void guest_resumed() override {
    service_.post_([&service = service_] { service.events_.resume(); });
  }

  void paused(const Error& why) override {
    service_.post_([&service = service_, text = why.text()] { service.take_paused(text); });
  }

 private:
  DaemonService& service_;
};

struct DaemonService::Run {
  explicit Run(DaemonService& service) noexcept : events(service) {}
  ~Run() {
    // finish_run() ends a Run, after a join; this is for what else may drop one while its thread runs.
    if (thread.joinable()) {
      stop->request();
      thread.join();
    }
  }

  std::uint64_t id = 0;
  std::unique_ptr<StopSource> stop;
  std::unique_ptr<Gate> continue_gate;
  std::unique_ptr<PostcopyControl> postcopy;  // of a source
  std::unique_ptr<RecoveryControl> recovery;  // of a destination
  // False: there is neither.
  bool break_connections() const {
    if (postcopy) postcopy->break_connections();
    if (recovery) recovery->break_connections();
    return postcopy || recovery;
  }
  std::shared_ptr<Progress> progress;
  PostingEvents events;
  bool exit_on_error = false;
  std::function<void(const Result<void>&)> done;  // of a hand-over; control
  std::unique_ptr<MigrationSource> source;
  std::unique_ptr<MigrationDestination> destination;
  // Written by the mover before its last message.
  std::optional<SourceOutcome> source_outcome;
  std::optional<DestinationOutcome> destination_outcome;
  std::thread thread;
};

}  // namespace migrationd::migration
