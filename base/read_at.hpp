// SPDX-License-Identifier: Apache-2.0
//
// Reading a file at a place, without moving its position.
#pragma once

#include "base/result.hpp"

#include <cstddef>
#include <cstdint>
#include <span>

namespace migrationd {

// Fills `into` from `offset` (bytes) of the file; fewer bytes than asked for only at its end. Any thread. Error:
// ErrorKind::io, "read at 0x1000: Input/output error".
Result<std::size_t> read_at(int fd, std::uint64_t offset, std::span<std::byte> into);

}  // namespace migrationd
