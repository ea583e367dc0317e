// SPDX-License-Identifier: Apache-2.0
//
// The cpr channel over a connected socket: the list of protocol/cpr, descriptor by descriptor (docs/formats/cpr.md).
//
//   old process: send_descriptors() → await_hangup() → connect the main channel
//   new process: receive_descriptors() → listen on the main channel → close the socket
//                (await_old_process() meanwhile)
//
// Errors name the channel. Descriptors given stay the caller's; those received are owned by the result.
// Thread: any one.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/cpr/cpr_state.hpp"
#include "transports/descriptor_passing.hpp"

#include <span>
#include <vector>

namespace migrationd::migration {

// The whole list, and the half-close.
Result<void> send_descriptors(int socket, std::span<const cpr::NamedDescriptor> descriptors, const StopSource& stop);

struct ReceivedDescriptors {
  std::vector<cpr::NamedDescriptor> entries;  // in the order of the list
  bool untouched = false;                     // the peer closed without a byte: a probe, and no old process
};
// Up to the half-close. Nothing of a list that is not whole is kept.
Result<ReceivedDescriptors> receive_descriptors(int socket, const StopSource& stop,
                                                const transports::Deadline& deadline);

// Until the new process has closed its end. An error if it did so before it had read the list. Its process is not
// watched: who listened need not be who reads (a supervisor's socket, a process that became a daemon).
Result<void> await_new_process(int socket, const StopSource& stop);
// Behind its list: until the old process has closed its end, or has ended while a child of it holds that open. Error:
// the stop.
Result<void> await_old_process(int socket, const StopSource& stop);

}  // namespace migrationd::migration
