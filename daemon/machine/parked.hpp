// SPDX-License-Identifier: Apache-2.0
//
// ParkedMachine: a machine of another program, held.
//
// migrationd does not know its devices. It keeps what the stream brought, byte for byte: the memory in memfd blocks
// of the stream's names, order and used lengths; every FULL section with its id; the description's text. Handed on,
// the stream differs from the one that came in the order of its RAM records only, and, when `cont` or `stop` was
// said meanwhile, in the run-state name in `globalstate`.
//
// It never runs. "Running" is what the next holder shall do.
//
// Taken over by cpr-transfer (docs/formats/cpr.md) its blocks are the old process's own memory, not copies, and the
// list of descriptors is kept as it came: handed on by cpr-transfer again, it has the same entries in the same order. A
// machine that came any other way has blocks of ours, which can be handed over just so.
#pragma once

#include "daemon/machine/machine.hpp"
#include "daemon/machine/receiver.hpp"

#include <sys/types.h>

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace migrationd {

class ParkedMachine final : public Machine {
 public:
  ParkedMachine(MachineConfiguration configuration, std::uint32_t ram_section_id, ram::RamMap ram);

  MachineKind kind() const noexcept override { return MachineKind::parked; }
  ram::RamMap& ram() noexcept override { return ram_; }
  const MachineConfiguration& configuration() const noexcept override { return configuration_; }
  std::uint32_t ram_section_id() const noexcept override { return ram_section_id_; }

  bool is_running() const noexcept override { return running_.load(std::memory_order_relaxed); }
  Result<void> resume() override;
  Result<void> pause() override;
  void throttle(unsigned) noexcept override {}

  ram::PageOrigin* page_origin() noexcept override { return origin_.get(); }
  ram::DirtyLog* dirty_log() noexcept override { return nullptr; }

  std::vector<DeviceSection> early_sections() const override;
  Result<DeviceState> save_devices(std::string_view run_state) override;
  Result<std::optional<std::string>> load_devices(DeviceState state) override;
  Result<std::vector<cpr::NamedDescriptor>> share_descriptors() override;
  Result<nlohmann::json> verify(const StopSource& stop) override;

  const DeviceState& devices() const noexcept { return devices_; }
  // Opened lazily: its pages are there, not in ram().
  void keep_pages_at(std::unique_ptr<ram::PageOrigin> origin) noexcept { origin_ = std::move(origin); }
  // Of cpr-transfer: the list as it came. An entry without a descriptor is the block of that name.
  void keep_descriptors(std::vector<cpr::NamedDescriptor> descriptors) noexcept {
    descriptors_ = std::move(descriptors);
  }
  // Learned from the stream after construction (SWITCHOVER_START comes late).
  void set_switchover_start(bool sent) noexcept { configuration_.switchover_start = sent; }

 private:
  MachineConfiguration configuration_;
  std::uint32_t ram_section_id_;
  ram::RamMap ram_;
  std::unique_ptr<ram::PageOrigin> origin_;
  DeviceState devices_;
  std::vector<cpr::NamedDescriptor> descriptors_;
  std::atomic<bool> running_{false};
};

// Blocks whose memory lies in files of the user's, by the block's name: --machine parked,memory=NAME:PATH
using MemoryFiles = std::map<std::string, std::string>;
// `text` is the whole machine word: "parked" or "parked,memory=ram0:/dev/shm/guest,...". Errors: ErrorKind::plan.
Result<MemoryFiles> parse_parked_options(std::string_view text);

// Makes a ParkedMachine out of whatever stream comes.
class ParkedReceiver final : public MachineReceiver {
 public:
  explicit ParkedReceiver(MemoryFiles files = {}) : named_files_(std::move(files)) {}

  Result<void> take_descriptors(std::vector<cpr::NamedDescriptor> descriptors) override;
  Result<void> begin(const MachineConfiguration& configuration) override;
  Result<Machine*> prepare_memory(std::span<const stream::RamSetupBlock> blocks, std::uint32_t ram_section_id) override;
  Result<void> keep_pages_at(std::unique_ptr<ram::PageOrigin> origin) override;
  void note_switchover_start() override;
  std::unique_ptr<Machine> take() override { return std::move(machine_); }

 private:
  Result<std::unique_ptr<ram::RamBlock>> make_block(const stream::RamSetupBlock& block);
  Result<std::unique_ptr<ram::RamBlock>> take_over(const stream::RamSetupBlock& block);
  Result<void> note_file(int fd);

  MemoryFiles named_files_;
  MachineConfiguration configuration_;
  std::optional<std::vector<cpr::NamedDescriptor>> descriptors_;  // of cpr-transfer
  std::vector<std::pair<dev_t, ino_t>> files_;                    // of the blocks that are not ours alone
  std::unique_ptr<ParkedMachine> machine_;
};

}  // namespace migrationd
