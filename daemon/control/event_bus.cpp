// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/event_bus.hpp"

#include "protocol/qmp/json_writer.hpp"

#include <chrono>

namespace migrationd::control {

template <class E>
void EventBus::emit(const E& event) {
  if (listeners_.empty()) return;
  const auto line = qmp::write_line(qmp::encode_event(event, std::chrono::system_clock::now()));
  for (auto* listener : listeners_) listener->on_event(line);
}

void EventBus::stop() { emit(qmp::event::Stop{}); }
void EventBus::resume() { emit(qmp::event::Resume{}); }
void EventBus::migration(qmp::MigrationStatus status) { emit(qmp::event::Migration{status}); }
void EventBus::migration_pass(std::uint64_t pass) { emit(qmp::event::MigrationPass{static_cast<std::int64_t>(pass)}); }
void EventBus::shutdown(qmp::ShutdownCause reason) { emit(qmp::event::Shutdown{false, reason}); }

}  // namespace migrationd::control
