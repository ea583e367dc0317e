// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "base/result.hpp"

#include <cerrno>

namespace migrationd {

// A write that failed because nobody reads any more: the peer has what it wants, or is gone; what it said last tells
// which. What a network lost is neither.
inline bool closed_by_peer(const Error& error) noexcept {
  return error.sys_errno() == EPIPE || error.sys_errno() == ECONNRESET;
}

}  // namespace migrationd
