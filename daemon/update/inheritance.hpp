// SPDX-License-Identifier: Apache-2.0
//
// What a daemon that replaces another gets from it, over the cpr channel it was started with (--take-over=FD): the new
// side of daemon/update/updater.hpp. Nothing in it is used before all of it has come and was proved.
//
// Thread: the process has one still. Errors: those of the channel, and ErrorKind::wire or machine for what is not what
// it should be.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"
#include "daemon/update/settings.hpp"
#include "protocol/cpr/cpr_state.hpp"

#include <optional>
#include <vector>

namespace migrationd::update {

struct Inheritance {
  UniqueFd cpr;  // closing it says that we are ready for the stream
  UniqueFd main;
  DaemonSettings settings;
  std::vector<UniqueFd> control;  // in the order of settings.control_paths
  UniqueFd door;                  // invalid: none
  // Of an attached machine.
  UniqueFd guest;
  Bytes registration;
  // The machine's.
  std::vector<cpr::NamedDescriptor> rest;
};

// Waits for the old daemon for inheritance_wait at most; it kills us long before that, or is dead.
inline constexpr std::chrono::seconds inheritance_wait{60};
Result<Inheritance> receive_inheritance(UniqueFd cpr, const StopSource& stop);
// The same, of a list that has come already.
Result<Inheritance> take_inheritance(std::vector<cpr::NamedDescriptor> entries);

}  // namespace migrationd::update
