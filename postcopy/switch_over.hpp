// SPDX-License-Identifier: Apache-2.0
//
// What the source says at the switch to postcopy (docs/spec/postcopy.md sections 5, 7 and 8), as bytes. Pure.
//
//   ADVISE        before the block list: which page sizes there are
//   RAM_DISCARD   what the destination must drop, because it is stale or will come again
//   PING 2
//   PACKAGED      one length, then LISTEN, the device sections, PING 3, RUN
//   PING 4        the first bytes that the destination's page reader sees
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "postcopy/block_shape.hpp"
#include "protocol/stream/commands.hpp"
#include "protocol/stream/sections.hpp"
#include "ram/dirty_log.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace migrationd::postcopy {

// PING values: QEMU's, and one of ours before the machine is stopped: its answer says that the destination has taken
// everything so far. Those of the page stream begin above them (stream_window.hpp).
inline constexpr std::uint32_t ping_before_stop = 5;
inline constexpr std::uint32_t ping_after_discards = 2;
inline constexpr std::uint32_t ping_in_package = 3;
inline constexpr std::uint32_t ping_after_package = 4;

// Ranges per discard command: what QEMU sends; any number up to the command's length would be taken.
inline constexpr std::size_t discard_ranges = 12;

stream::command::PostcopyAdvise advise(std::span<const BlockShape> blocks);

// Exactly the pages of `lacking` (rounded to host pages), in ascending runs. At least one command: QEMU runs a machine
// only after a discard, so when nothing is lacking the first host page of all is dropped, and must be sent: its bits
// are set in `lacking`.
std::vector<stream::command::PostcopyRamDiscard> plan_discards(std::span<const BlockShape> blocks,
                                                               ram::DirtyBitmaps& lacking);
// For a destination that has had no page since ADVISE, which emptied it: one formal discard.
std::vector<stream::command::PostcopyRamDiscard> formal_discard(std::span<const BlockShape> blocks);

// PACKAGED and its bytes. Error: the devices are larger than the length field can say.
Result<void> encode_package(ByteWriter& out, std::span<const stream::DeviceSection> devices);

}  // namespace migrationd::postcopy
