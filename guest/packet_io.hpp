// SPDX-License-Identifier: Apache-2.0
//
// Packets with descriptors over a SEQPACKET unix socket: one call is one packet. Both sides of the guest protocol, the
// library and the daemon, send and receive with these; how long either waits is its own.
//
// Thread: functions of a descriptor; any may send, one receives. Errors: ErrorKind::io from the system, ErrorKind::wire
// for a packet that is no packet of ours, ErrorKind::peer when the other side hung up. They name the other side by
// `peer`: "the daemon", "the guest".
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"
#include "guest/protocol.hpp"

#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace migrationd::guest {

struct Packet {
  Header header;
  Bytes body;
  std::vector<UniqueFd> fds;
};

// Sends all of it, or nothing and returns false: the socket is full (POLLOUT tells when it is not). Never waits. The
// descriptors stay the caller's.
Result<bool> try_send_packet(int socket, ByteView bytes, std::span<const int> fds, std::string_view peer);

// The next packet, its header proved and its descriptors counted and close-on-exec; none: nothing is there now. Never
// waits. Whatever fails, no descriptor is left open.
Result<std::optional<Packet>> try_receive_packet(int socket, std::string_view peer);

}  // namespace migrationd::guest
