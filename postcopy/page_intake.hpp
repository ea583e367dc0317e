// SPDX-License-Identifier: Apache-2.0
//
// PageIntake: reads one connection's row of page records after the switch and places the pages
// (docs/spec/postcopy.md sections 9.1, 9.2 and 10.2).
//
// On the main channel the records stand in sections, between PINGs, and the stream ends with EOF; on the preempt
// channel they stand bare until EOS. ZERO, PAGE and EOS are all there may be. CONTINUE means the block named last on
// this channel; on the main one that memory begins anew at the switch.
//
// A page that was received before is passed over: the guest may have written it since. A zero page that nobody waits
// for is noted and stays a hole.
//
// Errors: ErrorKind::wire with block and offset; those of the channel and of the placer. Thread: its channel's reader.
#pragma once

#include "base/result.hpp"
#include "postcopy/destination_pages.hpp"
#include "postcopy/host_page_assembler.hpp"
#include "postcopy/page_placer.hpp"
#include "postcopy/return_channel.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/sections.hpp"
#include "transports/buffered.hpp"

#include <atomic>
#include <cstdint>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace migrationd::postcopy {

// Target pages, all channels and connections together; read by anybody.
struct IntakeCounters {
  std::atomic<std::uint64_t> normal_pages{0};
  std::atomic<std::uint64_t> zero_pages{0};
  std::atomic<std::uint64_t> repeated_pages{0};  // were there already
  std::atomic<std::uint64_t> bytes{0};           // of connections that have ended
};

class PageIntake {
 public:
  // `placed`: the shapes whose host pages are placed as a whole (of small pages only, where nobody runs).
  PageIntake(transports::BufferedReader& reader, DestinationPages& pages, const std::vector<BlockShape>& placed,
             PagePlacer& placer, IntakeCounters& counters);

  // The main channel, to its EOF; every PING is answered. `ram_section_id`: the only section there may be.
  Result<void> read_stream(std::uint32_t ram_section_id, ReturnChannel& return_channel);
  // The preempt channel. True: its EOS came. False: it was closed between two records.
  Result<bool> read_bare();

 private:
  Result<void> take_element(const stream::Element& element, std::uint32_t ram_section_id, ReturnChannel& return_channel,
                            bool& ended);
  // Records up to EOS. False: the channel was closed between two records, where `may_close` allows it.
  Result<bool> read_records(bool may_close);
  Result<void> take_record(const stream::RamRecord& record);
  Result<void> take_page(std::uint64_t offset, const std::byte* bytes);
  Result<void> put(const HostPageAssembler::Whole& whole);

  transports::BufferedReader& reader_;
  DestinationPages& pages_;
  const std::vector<BlockShape>& placed_;
  PagePlacer& placer_;
  IntakeCounters& counters_;
  HostPageAssembler assembler_;
  std::unordered_map<std::string_view, std::size_t> index_;
  std::optional<std::size_t> block_;
};

}  // namespace migrationd::postcopy
