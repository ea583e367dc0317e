// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/parked.hpp"

#include "base/limits.hpp"
#include "protocol/stream/globalstate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace migrationd {

ParkedMachine::ParkedMachine(MachineConfiguration configuration, std::uint32_t ram_section_id, ram::RamMap ram)
    : configuration_(std::move(configuration)), ram_section_id_(ram_section_id), ram_(std::move(ram)) {}

Result<void> ParkedMachine::resume() {
  running_.store(true, std::memory_order_relaxed);
  return {};
}

Result<void> ParkedMachine::pause() {
  running_.store(false, std::memory_order_relaxed);
  return {};
}

std::vector<DeviceSection> ParkedMachine::early_sections() const {
  std::vector<DeviceSection> early;
  std::copy_if(devices_.sections.begin(), devices_.sections.end(), std::back_inserter(early),
               [](const stream::DeviceSection& section) { return section.early; });
  return early;
}

Result<DeviceState> ParkedMachine::save_devices(std::string_view run_state) {
  DeviceState state = devices_;
  std::erase_if(state.sections, [](const stream::DeviceSection& section) { return section.early; });
  for (stream::DeviceSection& section : state.sections) {
    if (section.name != stream::globalstate_name) continue;
    MD_TRY(const std::string received, stream::read_run_state(section.body));
    // Untouched when nobody said `cont` or `stop`: every byte stays.
    if (received == run_state) continue;
    MD_TRY(section.body, stream::with_run_state(section.body, run_state));
  }
  return state;
}

Result<std::optional<std::string>> ParkedMachine::load_devices(DeviceState state) {
  std::optional<std::string> run_state;
  for (const stream::DeviceSection& section : state.sections) {
    if (section.name != stream::globalstate_name) continue;
    auto name = stream::read_run_state(section.body);
    if (!name) return std::move(name).error().with("section 'globalstate'");
    run_state = *name;
  }
  devices_ = std::move(state);
  return run_state;
}

Result<nlohmann::json> ParkedMachine::verify(const StopSource&) {
  return machine_error("a parked machine's memory has no pattern of ours to check; only its own guest knows it");
}

Result<void> ParkedReceiver::begin(const MachineConfiguration& configuration) {
  configuration_ = configuration;
  return {};
}

Result<Machine*> ParkedReceiver::prepare_memory(std::span<const stream::RamSetupBlock> blocks,
                                                std::uint32_t ram_section_id) {
  ram::RamMap ram;
  for (const stream::RamSetupBlock& block : blocks) {
    // Backed by small pages whatever the sender had: a parked machine is not run, and the wire does not tell.
    auto made = ram::RamBlock::create(block.name, block.used_length, ram::page_size);
    if (!made) return std::move(made).error().with(fmt::format("block '{}'", printable(block.name)));
    MD_CHECK(ram.add(std::move(*made)));
  }
  machine_ = std::make_unique<ParkedMachine>(configuration_, ram_section_id, std::move(ram));
  return machine_.get();
}

Result<void> ParkedReceiver::keep_pages_at(std::unique_ptr<ram::PageOrigin> origin) {
  machine_->keep_pages_at(std::move(origin));
  return {};
}

void ParkedReceiver::note_switchover_start() {
  if (machine_) machine_->set_switchover_start(true);
}

}  // namespace migrationd
