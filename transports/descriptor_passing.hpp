// SPDX-License-Identifier: Apache-2.0
//
// Descriptors over a connected UNIX stream socket: SCM_RIGHTS, one descriptor to a message, and the end of a
// connection as a signal.
//
// Every wait ends with the stop. The socket's own O_NONBLOCK is never touched (channel.hpp). A descriptor that was
// received is close-on-exec and owned from the moment the kernel made it: no path through here leaks one.
//
// Errors: ErrorKind::io, ErrorKind::cancelled; ErrorKind::wire when a message was cut short. Thread: any one.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/unique_fd.hpp"

#include <chrono>
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace migrationd::transports {

// Descriptors that one message may bring; QEMU sends 16 at most.
inline constexpr std::size_t descriptors_per_message = 253;  // the kernel's own bound (SCM_MAX_FD)

using Deadline = std::optional<std::chrono::steady_clock::time_point>;  // nothing: as long as it takes

// Writes everything.
Result<void> send_bytes(int socket, ByteView bytes, const StopSource& stop);
// One message of exactly this byte with the descriptor, which stays the caller's.
Result<void> send_descriptor(int socket, std::byte carrier, int descriptor, const StopSource& stop);
// No more bytes from here; the other direction stays open.
Result<void> end_writing(int socket);

// What one message brought: bytes, 0 at the end of the stream. Its descriptors are appended to `descriptors`.
Result<std::size_t> receive(int socket, std::span<std::byte> into, std::vector<UniqueFd>& descriptors,
                            const StopSource& stop, const Deadline& deadline);

// The process that connected `socket`: readable (poll) once it has ended, whoever else holds its end of the socket
// still. None where the kernel does not show it (another pid namespace), or where it is this process.
UniqueFd watch_peer_process(int socket) noexcept;

// Waits until the peer has closed its end (or is gone, if its process is watched). Call it after end_writing(). True:
// it had read everything, or it is gone.
Result<bool> await_hangup(int socket, const StopSource& stop, int peer_process = -1);

}  // namespace migrationd::transports
