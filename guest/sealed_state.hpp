// SPDX-License-Identifier: Apache-2.0
//
// Bytes in a memfd that nobody can change any more: how the state of a guest's devices travels between it and its
// daemon (docs/formats/guest-protocol.md, "State"), and what a daemon says of itself to the one that replaces it. Read,
// never mapped, so that nothing of it can fault.
//
// Thread: functions. Errors: ErrorKind::io from the system, ErrorKind::machine for a descriptor that will not do.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <cstdint>

namespace migrationd::guest {

// A memfd with these bytes, sealed against everything.
Result<UniqueFd> make_state(ByteView bytes);
// Its bytes. Refused unless it is sealed against shrinking, growing and writing, and `length` long; the caller has
// bounded that.
Result<Bytes> read_state(int fd, std::uint64_t length);

}  // namespace migrationd::guest
