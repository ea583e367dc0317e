// SPDX-License-Identifier: Apache-2.0
//
// The synthetic guest's devices: plain structs, described by tables in synthetic_devices.cpp.
//
//   synthetic-guest  what the guest is, and how many pages each of its threads has written: the ledger that says
//                    what every page of memory must hold
//   synthetic-clock  ticks, running time, hand-overs, the copy that ran before
//   synthetic-lines  an array of structs
//   synthetic-disk   a counted array of requests, a buffer, an optional subsection with one of its own
//   globalstate      the run state, as every machine of this format has it
//
// Lines and disk hold values made from the clock and the seed, so that after a migration verify() can tell whether
// a device's state arrived whole. They exist to put every construct of vmstate/ on the wire.
//
// Thread: values of the machine's owner.
#pragma once

#include "base/result.hpp"
#include "daemon/machine/synthetic_options.hpp"
#include "vmstate/device_set.hpp"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace migrationd::synthetic {

struct GuestState {
  std::uint64_t ram_bytes = 0;
  std::uint32_t page_bytes = 0;  // of the backing memory
  std::uint64_t working_bytes = 0;
  std::uint64_t touched_bytes = 0;
  std::uint64_t dirty_rate = 0;
  std::uint64_t seed = 0;
  std::uint32_t threads = 0;
  std::array<std::uint64_t, synthetic_threads_max> writes{};  // pages, per thread

  Result<void> check_loaded();
};

struct ClockState {
  std::uint64_t ticks = 0;          // one every 10 ms while running
  std::uint64_t running_time = 0;   // nanoseconds
  std::uint32_t handovers = 0;      // times the state was loaded by another process
  std::int16_t zone = -60;          // minutes; a signed constant
  std::array<char, 36> instance{};  // the process that saved, or that runs now
};

struct LineState {
  bool level = false;
  std::uint8_t source = 0;
  std::uint16_t count = 0;
  bool operator==(const LineState&) const = default;
};
struct LinesState {
  std::array<LineState, 8> lines{};
  std::array<std::array<std::int8_t, 4>, 2> gains{};
  bool operator==(const LinesState&) const = default;
};

struct DiskRequest {
  std::uint64_t sector = 0;
  std::uint32_t length = 0;
  bool is_write = false;
  bool operator==(const DiskRequest&) const = default;
};
struct DiskState {
  static constexpr std::size_t most_requests = 16;
  std::uint16_t request_count = 0;
  std::array<DiskRequest, most_requests> requests{};
  std::array<std::uint8_t, 20> serial{};
  std::uint8_t journal_length = 0;
  std::array<std::uint32_t, 8> journal{};  // subsection: only when there is one
  std::uint64_t barrier = 0;               // subsection of that: only when set
  bool wide = false;
  std::uint32_t narrow_cursor = 0;  // one of the two is sent, by `wide`
  std::uint64_t wide_cursor = 0;
  std::int64_t drift = 0;  // since version 2
  bool operator==(const DiskState&) const = default;

  bool is_wide() const { return wide; }
  bool is_narrow() const { return !wide; }
  bool has_journal() const { return journal_length != 0; }
  bool has_barrier() const { return barrier != 0; }
  // What a missing subsection leaves.
  void forget_optional() {
    journal_length = 0;
    barrier = 0;
  }
};

struct RunState {
  std::uint32_t size = 0;  // of the name with its NUL
  std::array<char, 100> name{};

  // 1..31 bytes (QEMU 10.0 keeps flags behind them).
  Result<void> set(std::string_view text);
  std::string_view text() const noexcept { return {name.data(), size - 1}; }
  Result<void> check_loaded();
};

// The run state alone, for machines with devices of other kinds.
Result<vmstate::DeviceSet> run_state_set(RunState& state, std::uint32_t section_id);

struct Devices {
  GuestState guest;
  ClockState clock;
  LinesState lines;
  DiskState disk;
  RunState run_state;

  // Sets lines and disk to the values that belong to this clock and seed.
  void settle();
  // Whether they hold them.
  Result<void> check_settled() const;
  // All of them in a set that refers to this object.
  Result<vmstate::DeviceSet> set(std::uint32_t first_section_id);
};

// The tables of all of them as JSON (docs/formats/vmstate.md, "Tables as JSON").
Result<std::string> dump_device_tables();

}  // namespace migrationd::synthetic
