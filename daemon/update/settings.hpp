// SPDX-License-Identifier: Apache-2.0
//
// What a daemon says of itself to the one that replaces it (docs/formats/update.md): its settings, where its machine
// came from, and which of its sockets' paths it made. JSON in a sealed memfd. The command line is not in it: the new
// daemon has the same one.
//
// Thread: values. Errors: ErrorKind::wire; settings that this program does not know are an error too, so that nothing a
// user has set is lost without a word.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/qmp/parameters.hpp"

#include <string>
#include <string_view>
#include <vector>

namespace migrationd::update {

inline constexpr int settings_format = 1;
// Some 6 KiB; a block-bitmap-mapping may be longer.
inline constexpr std::size_t settings_bytes = std::size_t{1} << 20;

struct DaemonSettings {
  std::string version;           // of the program that wrote it
  std::string machine = "none";  // what is handed over: "none", "parked", "synthetic" or "attached"
  std::string origin;            // where it came from; empty: nowhere
  qmp::Capabilities capabilities;
  qmp::MigrationParameters parameters;
  std::vector<bool> control_paths;  // of each control socket: its path is removed at the end
  bool door_path = false;           // the same for guests' socket
};

Bytes encode_settings(const DaemonSettings& settings);
Result<DaemonSettings> decode_settings(ByteView text);

}  // namespace migrationd::update
