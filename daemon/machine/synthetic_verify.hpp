// SPDX-License-Identifier: Apache-2.0
//
// The proof of a synthetic guest's memory: every page of a block against the ledger, reading data only.
//
// Thread: the caller owns the memory; the guest is paused.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "daemon/machine/synthetic_pattern.hpp"
#include "ram/ram_map.hpp"

#include <cstdint>
#include <functional>
#include <optional>

namespace migrationd::synthetic {

struct Proof {
  std::uint64_t checked_pages = 0;    // all pages of the block
  std::uint64_t pages_with_data = 0;  // those that hold the pattern
};

// The generation a page must hold, or nothing if it must be a hole or zero.
using Expected = std::function<std::optional<std::uint64_t>(std::uint64_t page)>;

// How often the stop is looked at: every 4 MiB, a few milliseconds also where each page has to be read.
inline constexpr std::uint64_t verify_pages_per_look = (std::uint64_t{4} << 20) / ram::page_size;

// `expected_data`: how many pages have a generation at all. Errors: ErrorKind::machine names the first page that is
// wrong; ErrorKind::cancelled after `stop`.
Result<Proof> prove_block(const ram::RamBlock& block, std::size_t index, std::uint64_t seed, const Expected& expected,
                          std::uint64_t expected_data, const StopSource& stop);

}  // namespace migrationd::synthetic
