// SPDX-License-Identifier: Apache-2.0
//
// What a multifd destination expects, guessed from the machine's type: pure.
//
// Two things are agreed on nowhere in the stream; QEMU derives them from the machine type on each side, and where the
// sides differ memory is lost without a word (multifd.md 7 and 8):
//   * which places of the main stream are barriers: up to 8.0 every end of a RAM section, from 8.1 on FLUSH records;
//   * whether zero pages may be listed in packets: from 9.0 on; QEMU 7.2 does not read that field.
// So the machine type decides here too. A type whose age cannot be read (no "-MAJOR.MINOR" at its end) is sent what at
// worst fails loudly: FLUSH records, which an old destination refuses, and zero pages in the main stream, which every
// one understands. Machines of this daemon's own are as new as can be.
//
// A destination of ours reads all of it and needs no guess.
#pragma once

#include "protocol/qmp/parameters.hpp"
#include "ram/sink_multifd.hpp"

#include <optional>
#include <string_view>
#include <utility>

namespace migrationd::migration {

// Major and minor version in a machine type: {10, 0} of "pc-i440fx-10.0"; nothing for "microvm", "pc-q35-rhel9.6.0".
using MachineVersion = std::pair<unsigned, unsigned>;
std::optional<MachineVersion> machine_version(std::string_view machine_type);

struct MultifdRules {
  bool sync_per_section = false;
  ram::MultifdZeros zeros = ram::MultifdZeros::in_packets;
  bool operator==(const MultifdRules&) const = default;
};

MultifdRules multifd_rules(std::string_view machine_type, qmp::ZeroPageDetection wanted);

}  // namespace migrationd::migration
