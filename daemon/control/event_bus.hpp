// SPDX-License-Identifier: Apache-2.0
//
// EventBus: QMP events to every negotiated session (qmp.md 6).
//
// An event is written to all sessions at the moment it is emitted. What a command causes while its handler runs is
// therefore on the wire before the command's reply, which is queued when the handler has returned (qmp.md 4).
// Movers never come here: they post to the event loop, and control emits in the order of the posts.
//
// None of the events here is rate-limited by QEMU, so none is here.
//
// Thread: control.
#pragma once

#include "daemon/migration/service.hpp"
#include "protocol/qmp/events.hpp"

#include <string>
#include <vector>

namespace migrationd::control {

class EventListener {
 public:
  virtual ~EventListener() = default;
  // `line`: the event as it goes out, line end included. Must not add or remove listeners.
  virtual void on_event(const std::string& line) = 0;
};

class EventBus final : public migration::EventSink {
 public:
  void add(EventListener& listener) { listeners_.push_back(&listener); }
  void remove(EventListener& listener) noexcept { std::erase(listeners_, &listener); }

  void stop() override;
  void resume() override;
  void migration(qmp::MigrationStatus status) override;
  void migration_pass(std::uint64_t pass) override;
  void shutdown(qmp::ShutdownCause reason);

 private:
  template <class E>
  void emit(const E& event);

  std::vector<EventListener*> listeners_;
};

}  // namespace migrationd::control
