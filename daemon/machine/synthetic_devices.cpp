// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic_devices.hpp"

#include "base/limits.hpp"
#include "daemon/machine/synthetic_pattern.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::synthetic {
namespace {

namespace vs = vmstate;

// --- guest -----------------------------------------------------------------------------------------------
constexpr vs::Field guest_fields[] = {
    vs::field<&GuestState::ram_bytes>("ram-bytes"),
    vs::field<&GuestState::page_bytes>("page-bytes"),
    vs::field<&GuestState::working_bytes>("working-bytes"),
    vs::field<&GuestState::touched_bytes>("touched-bytes"),
    vs::field<&GuestState::dirty_rate>("dirty-rate"),
    vs::field<&GuestState::seed>("seed"),
    vs::field<&GuestState::threads>("threads"),
    vs::counted<&GuestState::writes, &GuestState::threads>("writes"),
};
constexpr auto guest_table = vs::describe<GuestState>("synthetic-guest", 1)
                                 .fields(guest_fields)
                                 .readable_from(1)
                                 .with_priority(vs::Priority::pci_bus)
                                 .post_load<&GuestState::check_loaded>();
static_assert(vs::check(guest_table) == vs::TableFault::none);

// --- clock -----------------------------------------------------------------------------------------------
void count_handover(ClockState& clock) { ++clock.handovers; }

constexpr vs::Field clock_fields[] = {
    vs::field<&ClockState::ticks>("ticks"),
    vs::field<&ClockState::running_time>("running-time"),
    vs::unused<ClockState>(4),
    vs::field<&ClockState::handovers>("handovers").since(2),
    vs::field<&ClockState::zone>("zone").since(2),
    vs::buffer<&ClockState::instance>("instance").since(3),
};
constexpr auto clock_table =
    vs::describe<ClockState>("synthetic-clock", 3).fields(clock_fields).readable_from(1).post_load<&count_handover>();
static_assert(vs::check(clock_table) == vs::TableFault::none);

// --- lines -----------------------------------------------------------------------------------------------
constexpr vs::Field line_fields[] = {
    vs::field<&LineState::level>("level"),
    vs::field<&LineState::source>("source"),
    vs::field<&LineState::count>("count"),
};
constexpr auto line_table = vs::describe<LineState>("synthetic-line", 1).fields(line_fields);
constexpr vs::Field lines_fields[] = {
    vs::structure<&LinesState::lines>("lines", line_table),
    vs::field<&LinesState::gains>("gains"),
};
constexpr auto lines_table = vs::describe<LinesState>("synthetic-lines", 1).fields(lines_fields).readable_from(1);
static_assert(vs::check(lines_table) == vs::TableFault::none);

// --- disk ------------------------------------------------------------------------------------------------
constexpr vs::Field request_fields[] = {
    vs::field<&DiskRequest::sector>("sector"),
    vs::field<&DiskRequest::length>("length"),
    vs::field<&DiskRequest::is_write>("is-write"),
};
constexpr auto request_table = vs::describe<DiskRequest>("synthetic-disk-request", 1).fields(request_fields);

constexpr vs::Field barrier_fields[] = {vs::field<&DiskState::barrier>("barrier")};
constexpr auto barrier_table = vs::describe<DiskState>("synthetic-disk/journal/barrier", 1)
                                   .fields(barrier_fields)
                                   .readable_from(1)
                                   .needed_if<&DiskState::has_barrier>();
constexpr const vs::Description* journal_parts[] = {&barrier_table};
constexpr vs::Field journal_fields[] = {
    vs::field<&DiskState::journal_length>("length"),
    vs::counted<&DiskState::journal, &DiskState::journal_length>("entries"),
};
constexpr auto journal_table = vs::describe<DiskState>("synthetic-disk/journal", 1)
                                   .fields(journal_fields)
                                   .subsections(journal_parts)
                                   .readable_from(1)
                                   .needed_if<&DiskState::has_journal>();
constexpr const vs::Description* disk_parts[] = {&journal_table};
constexpr vs::Field disk_fields[] = {
    vs::field<&DiskState::request_count>("request-count"),
    vs::counted_structures<&DiskState::requests, &DiskState::request_count>("requests", request_table),
    vs::buffer<&DiskState::serial>("serial"),
    vs::field<&DiskState::wide>("wide"),
    vs::field<&DiskState::narrow_cursor>("cursor").when<&DiskState::is_narrow>().shares_name(),
    vs::field<&DiskState::wide_cursor>("cursor").when<&DiskState::is_wide>().shares_name(),
    vs::field<&DiskState::drift>("drift").since(2),
};
constexpr auto disk_table = vs::describe<DiskState>("synthetic-disk", 2)
                                .fields(disk_fields)
                                .subsections(disk_parts)
                                .readable_from(1)
                                .pre_load<&DiskState::forget_optional>();
static_assert(vs::check(disk_table) == vs::TableFault::none);

// --- run state -------------------------------------------------------------------------------------------
constexpr vs::Field run_state_fields[] = {
    vs::field<&RunState::size>("size"),
    vs::buffer<&RunState::name>("runstate"),
};
constexpr auto run_state_table = vs::describe<RunState>("globalstate", 1)
                                     .fields(run_state_fields)
                                     .readable_from(1)
                                     .post_load<&RunState::check_loaded>();
static_assert(vs::check(run_state_table) == vs::TableFault::none);

constexpr std::size_t run_state_bytes = 31;

void settle_disk(DiskState& disk, std::uint64_t chance) {
  disk = DiskState{};
  disk.request_count = static_cast<std::uint16_t>(chance % (DiskState::most_requests + 1));
  for (std::size_t i = 0; i < disk.request_count; ++i) {
    const std::uint64_t value = mix(chance + i);
    disk.requests[i] = {value >> 16, static_cast<std::uint32_t>(value & 0xffff), (value & 1) != 0};
  }
  for (std::size_t i = 0; i < disk.serial.size(); ++i) disk.serial[i] = static_cast<std::uint8_t>('A' + i);
  disk.journal_length = static_cast<std::uint8_t>((chance >> 8) % (disk.journal.size() + 1));
  for (std::size_t i = 0; i < disk.journal_length; ++i) disk.journal[i] = static_cast<std::uint32_t>(mix(~chance + i));
  if (disk.has_journal() && (chance & 1) != 0) disk.barrier = mix(chance ^ 7) | 1;
  disk.wide = (chance & 2) != 0;
  if (disk.wide) {
    disk.wide_cursor = chance;
  } else {
    disk.narrow_cursor = static_cast<std::uint32_t>(chance >> 20);
  }
  disk.drift = -static_cast<std::int64_t>(chance >> 40);
}

void settle_lines(LinesState& lines, std::uint64_t chance) {
  for (std::size_t i = 0; i < lines.lines.size(); ++i) {
    const std::uint64_t value = mix(chance + 100 + i);
    lines.lines[i] = {(value & 1) != 0, static_cast<std::uint8_t>(i), static_cast<std::uint16_t>(value >> 8)};
  }
  std::uint64_t value = mix(chance + 200);
  for (auto& row : lines.gains) {
    for (std::int8_t& gain : row) {
      gain = static_cast<std::int8_t>(static_cast<int>(value & 0xff) - 128);
      value >>= 8;
    }
  }
}

}  // namespace

Result<void> GuestState::check_loaded() {
  const std::uint64_t pages = ram_bytes / ram::page_size;
  const bool sizes_fit = ram_bytes != 0 && ram_bytes <= limits::ram_block_bytes && working_bytes <= ram_bytes &&
                         touched_bytes <= ram_bytes && pages != 0;
  const bool sizes_whole =
      ram_bytes % ram::page_size == 0 && working_bytes % ram::page_size == 0 && touched_bytes % ram::page_size == 0;
  const bool threads_fit = threads >= 1 && (dirty_rate == 0 || working_bytes / ram::page_size >= threads);
  if (sizes_fit && sizes_whole && threads_fit) return {};
  return wire_error(fmt::format("a guest of {} bytes, working set {}, touched {}, {} threads contradicts itself",
                                ram_bytes, working_bytes, touched_bytes, threads));
}

Result<void> RunState::set(std::string_view text) {
  if (text.empty() || text.size() > run_state_bytes) {
    return machine_error(fmt::format("run state '{}' cannot be sent", printable(text)));
  }
  name = {};
  std::copy(text.begin(), text.end(), name.begin());
  size = static_cast<std::uint32_t>(text.size() + 1);
  return {};
}

Result<void> RunState::check_loaded() {
  if (size < 2 || size > run_state_bytes + 1) return wire_error(fmt::format("run state of {} bytes", size));
  const std::string_view name_text = text();
  const bool plain =
      std::all_of(name_text.begin(), name_text.end(), [](char c) { return (c >= 'a' && c <= 'z') || c == '-'; });
  if (!plain || name[size - 1] != '\0') {
    return wire_error(fmt::format("run state '{}' is no name", printable(name_text)));
  }
  return {};
}

void Devices::settle() {
  const std::uint64_t chance = mix(clock.ticks ^ mix(guest.seed));
  settle_disk(disk, chance);
  settle_lines(lines, chance);
}

Result<void> Devices::check_settled() const {
  Devices wanted;
  wanted.clock = clock;
  wanted.guest = guest;
  wanted.settle();
  if (!(wanted.disk == disk)) return machine_error("device 'synthetic-disk' does not hold what belongs to its clock");
  if (!(wanted.lines == lines)) {
    return machine_error("device 'synthetic-lines' does not hold what belongs to its clock");
  }
  return {};
}

Result<vmstate::DeviceSet> run_state_set(RunState& state, std::uint32_t section_id) {
  vmstate::DeviceSet devices(section_id);
  MD_CHECK(devices.add(run_state_table, state));
  return devices;
}

Result<vmstate::DeviceSet> Devices::set(std::uint32_t first_section_id) {
  vmstate::DeviceSet devices(first_section_id);
  MD_CHECK(devices.add(clock_table, clock));
  MD_CHECK(devices.add(lines_table, lines));
  MD_CHECK(devices.add(disk_table, disk, {"0000:00:01.0", {}}));
  MD_CHECK(devices.add(guest_table, guest));
  MD_CHECK(devices.add(run_state_table, run_state));
  return devices;
}

Result<std::string> dump_device_tables() {
  Devices devices;
  MD_TRY(const auto set, devices.set(0));
  return set.dump_tables("synthetic");
}

}  // namespace migrationd::synthetic
