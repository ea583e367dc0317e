// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "base/result.hpp"

#include <cerrno>
#include <chrono>

namespace migrationd {

// A write that failed because nobody reads any more: the peer has what it wants, or is gone; what it said last tells
// which. What a network lost is neither.
inline bool closed_by_peer(const Error& error) noexcept {
  return error.sys_errno() == EPIPE || error.sys_errno() == ECONNRESET;
}

// How long a failure waits for the peer's own word on why, which another thread reads. Where the connection is over
// that thread meets its end, too, however late a busy machine lets it run: the bound is against a peer that only
// stopped reading. Anything else may have nothing to do with the peer.
inline std::chrono::milliseconds peers_word_wait(const Error& met) noexcept {
  return closed_by_peer(met) ? std::chrono::milliseconds(5000) : std::chrono::milliseconds(200);
}

}  // namespace migrationd
