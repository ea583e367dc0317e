// SPDX-License-Identifier: Apache-2.0
//
// The door of the destination: which of the connections is the source?
//
// An open port is probed: by scanners, by health checks, by people with telnet. QEMU takes the first connection
// for its source and ends when that was none. Here every connection is a candidate until it has sent the eight
// bytes of a migration header; the first that does is the source, the others are dropped and logged. A
// candidate that sends something else is dropped at once, one that says nothing after limits::header_wait.
// A silent candidate does not keep the source waiting: all are polled together.
//
// Thread: the mover. Ends with the stop.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "transports/channel.hpp"
#include "transports/listen.hpp"

#include <memory>

namespace migrationd::migration {

// The channel of the first connection that sent a valid header; the header is still unread.
Result<std::unique_ptr<transports::Channel>> accept_source(transports::Listener& listener, StopSource& stop);

}  // namespace migrationd::migration
