// SPDX-License-Identifier: Apache-2.0
//
// The state of an attached guest's devices, between the form in which the guest gives and takes it
// (docs/formats/guest-protocol.md, "State") and that of a stream.
//
// The guest's word is proved: every section belongs to a device it registered, with the version it registered, and its
// description accounts for every byte, so that a stream of ours is one that anybody can take apart. In front stands the
// run state (`globalstate`), which is the daemon's.
//
// Thread: values.
#pragma once

#include "base/result.hpp"
#include "daemon/machine/machine.hpp"
#include "guest/protocol.hpp"

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd {

// Section ids are counted from `first_section_id`.
Result<DeviceState> state_to_stream(std::vector<guest::StateSection> sections,
                                    std::span<const guest::AddDevice> devices, std::string_view run_state,
                                    std::uint32_t first_section_id);

struct StreamState {
  std::vector<guest::StateSection> sections;
  std::optional<std::string> run_state;  // nothing: the stream named none
};
// Errors name the device that is unknown here, too new or too old.
Result<StreamState> state_from_stream(DeviceState state, std::span<const guest::AddDevice> devices);

}  // namespace migrationd
