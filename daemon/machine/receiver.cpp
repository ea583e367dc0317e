// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/receiver.hpp"

#include <fmt/format.h>

namespace migrationd {

Result<void> ResidentReceiver::begin(const MachineConfiguration& configuration) {
  MD_CHECK(machine_.check_may_arrive());
  const std::string& own = machine_.configuration().machine_name;
  if (configuration.machine_name == own) return {};
  return machine_error(
      fmt::format("Machine type received is '{}' and local is '{}'", printable(configuration.machine_name), own));
}

Result<Machine*> ResidentReceiver::prepare_memory(std::span<const stream::RamSetupBlock> blocks, std::uint32_t) {
  ram::RamMap& ram = machine_.ram();
  for (const stream::RamSetupBlock& block : blocks) {
    MD_TRY(const std::size_t index, ram.find(block.name));
    if (ram.at(index).length() == block.used_length) continue;
    return machine_error(fmt::format("block '{}': size {} received, {} expected", printable(block.name),
                                     hex(block.used_length), hex(ram.at(index).length())));
  }
  // Names are unique on both sides, so equal counts mean equal sets.
  if (blocks.size() != ram.size()) {
    return machine_error(fmt::format("{} memory blocks received, {} expected", blocks.size(), ram.size()));
  }
  return &machine_;
}

}  // namespace migrationd
