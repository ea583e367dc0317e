// SPDX-License-Identifier: Apache-2.0
// A machine of one block that counts how often it was started and stopped.
#pragma once

#include "daemon/machine/machine.hpp"

#include <atomic>

namespace migrationd::testing {

class FakeMachine final : public Machine {
 public:
  explicit FakeMachine(MachineKind kind = MachineKind::synthetic) : kind_(kind) {}

  MachineKind kind() const noexcept override { return kind_; }
  ram::RamMap& ram() noexcept override { return ram_; }
  const MachineConfiguration& configuration() const noexcept override { return configuration_; }
  std::uint32_t ram_section_id() const noexcept override { return 1; }
  bool is_running() const noexcept override { return running; }
  Result<void> resume() override {
    if (refuses_to_resume) return machine_error("refused");
    ++resumes;
    running = true;
    return {};
  }
  Result<void> pause() override {
    ++pauses;
    running = false;
    return {};
  }
  void throttle(unsigned percent) noexcept override { throttled = percent; }
  ram::DirtyLog* dirty_log() noexcept override { return nullptr; }
  Result<DeviceState> save_devices(std::string_view) override { return DeviceState{}; }
  Result<std::optional<std::string>> load_devices(DeviceState) override { return std::optional<std::string>(); }
  Result<nlohmann::json> verify(const StopSource&) override { return nlohmann::json::object(); }

  std::atomic<bool> running{false};
  bool refuses_to_resume = false;
  int resumes = 0;
  int pauses = 0;
  unsigned throttled = 0;

 private:
  MachineKind kind_;
  ram::RamMap ram_;
  MachineConfiguration configuration_;
};

}  // namespace migrationd::testing
