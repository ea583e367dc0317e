// SPDX-License-Identifier: Apache-2.0
//
// Tables as JSON: what a program's devices look like, for comparing two versions of it with
// `migrationctl compare-devices`. The form is that of docs/formats/vmstate.md, "Tables as JSON".
//
// Thread: pure.
#pragma once

#include "vmstate/description.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace migrationd::vmstate {

inline constexpr unsigned dump_format = 1;

struct DumpedDevice {
  std::string_view id;  // as in a stream
  std::uint32_t instance_id = 0;
  const Description* table = nullptr;
  bool legacy = false;  // without a table: only name and version are known
};

// One line per device. `machine` says whose devices they are.
std::string dump_tables(std::span<const DumpedDevice> devices, std::string_view machine);

}  // namespace migrationd::vmstate
