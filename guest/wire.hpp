// SPDX-License-Identifier: Apache-2.0
//
// The guest's way to its daemon: the connection, and packets that are waited for (guest/packet_io.hpp).
//
// Thread: functions of a descriptor; two threads may send, one receives. Errors: those of packet_io.hpp, and
// ErrorKind::peer when the daemon does not read.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "guest/packet_io.hpp"

#include <chrono>
#include <optional>
#include <span>

namespace migrationd::guest {

// A bound on a daemon that does not read or does not answer; its own work on a request is short.
inline constexpr std::chrono::seconds daemon_wait{30};

// A connected socket. `path` as the program gave it; waits for a place in the daemon's queue for daemon_wait.
Result<UniqueFd> connect_to(const char* path);

// Sends all of it or fails, after daemon_wait. The descriptors stay the caller's.
Result<void> send_packet(int socket, ByteView bytes, std::span<const int> fds = {});

// The next packet; none if there is none after `wait` (negative: however long it takes).
Result<std::optional<Packet>> receive_packet(int socket, std::chrono::milliseconds wait);

}  // namespace migrationd::guest
