// SPDX-License-Identifier: Apache-2.0
//
// DestinationState: where an incoming postcopy stands, and what may come next (docs/spec/postcopy.md section 11.1).
//
//   none ─ ADVISE ─> advise ─ RAM_DISCARD ─> discard ─ LISTEN ─> listen ─ RUN ─> running ─ EOF ─> end
//                      │                                  ▲
//                      ├──────────────── LISTEN ──────────┘      (nothing was stale: QEMU never sends it so)
//                      └── the stream ends as precopy does
//
// Every command of a hostile source comes here first; the refusal names the state. A broken connection does not change
// the state: while the guest waits for its memory it is `running`.
//
// Pure. Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "postcopy/block_shape.hpp"
#include "protocol/stream/commands.hpp"

#include <cstdint>
#include <optional>
#include <string_view>

namespace migrationd::postcopy {

enum class DestinationPhase : std::uint8_t { none, advise, discard, listen, running, end };
std::string_view phase_name(DestinationPhase phase) noexcept;

// Largest package taken: device state of limits::device_state_bytes, and room for its commands.
inline constexpr std::uint64_t package_bytes_max = (std::uint64_t{256} << 20) + 4096;

class DestinationState {
 public:
  // `allowed`: the capability postcopy-ram is on here.
  explicit DestinationState(bool allowed) noexcept : allowed_(allowed) {}

  DestinationPhase phase() const noexcept { return phase_; }
  // Pages that were received may be taken away again: their arrival is noted from ADVISE on.
  bool advised() const noexcept { return phase_ != DestinationPhase::none; }

  // `own_page_sizes`: the backing page sizes of our blocks, or-ed; nothing when the machine is made from the stream.
  Result<void> advise(const stream::command::PostcopyAdvise& advise, std::optional<std::uint64_t> own_page_sizes,
                      bool memory_began);
  // Every range: whole host pages inside the block, not empty.
  Result<void> discard(const stream::command::PostcopyRamDiscard& discard, const BlockShape& block);
  // PACKAGED: its bytes come next.
  Result<void> package(const stream::command::Packaged& packaged, bool memory_began);
  Result<void> listen();
  Result<void> run();
  // EOF on the main channel, or the last section of RAM, in the precopy part of the stream.
  Result<void> end_as_precopy() const;
  // EOF behind the pages, everything placed.
  Result<void> end();

 private:
  Error out_of_order(std::string_view what) const;

  bool allowed_;
  DestinationPhase phase_ = DestinationPhase::none;
  bool packaged_ = false;
};

}  // namespace migrationd::postcopy
