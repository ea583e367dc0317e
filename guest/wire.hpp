// SPDX-License-Identifier: Apache-2.0
//
// Packets with descriptors over a SEQPACKET unix socket, the guest's side: one call is one packet.
//
// Thread: functions of a descriptor; two threads may send, one receives. Errors: ErrorKind::io from the system,
// ErrorKind::wire for a packet that is no packet of ours, ErrorKind::peer when the other side hung up or does not read.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "guest/protocol.hpp"

#include <chrono>
#include <optional>
#include <span>
#include <vector>

namespace migrationd::guest {

struct Packet {
  Header header;
  Bytes body;
  std::vector<UniqueFd> fds;
};

// A bound on a daemon that does not read or does not answer; its own work on a request is short.
inline constexpr std::chrono::seconds daemon_wait{30};

// A connected socket whose sends give up after daemon_wait. `path` as the program gave it.
Result<UniqueFd> connect_to(const char* path);

// Sends all of it or fails. The descriptors stay the caller's.
Result<void> send_packet(int socket, ByteView bytes, std::span<const int> fds = {});

// The next packet, its header proved and its descriptors counted; none if there is none after `wait` (negative: however
// long it takes). Whatever fails, no descriptor is left open.
Result<std::optional<Packet>> receive_packet(int socket, std::chrono::milliseconds wait);

}  // namespace migrationd::guest
