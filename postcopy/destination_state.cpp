// SPDX-License-Identifier: Apache-2.0
#include "postcopy/destination_state.hpp"

#include "protocol/stream/layout.hpp"

#include <fmt/format.h>

#include <array>

namespace migrationd::postcopy {

using stream::page_bytes;

namespace {

constexpr std::array<std::string_view, 6> names{"none", "advise", "discard", "listen", "running", "end"};
// LISTEN and RUN, with nothing between them.
constexpr std::uint32_t smallest_package = 10;

}  // namespace

std::string_view phase_name(DestinationPhase phase) noexcept { return names[static_cast<std::size_t>(phase)]; }

Error DestinationState::out_of_order(std::string_view what) const {
  return wire_error(fmt::format("{} in wrong postcopy state ({})", what, phase_name(phase_)));
}

Result<void> DestinationState::advise(const stream::command::PostcopyAdvise& advise,
                                      std::optional<std::uint64_t> own_page_sizes, bool memory_began) {
  if (phase_ != DestinationPhase::none) return out_of_order("POSTCOPY_ADVISE");
  if (memory_began) return wire_error("POSTCOPY_ADVISE behind the list of memory blocks");
  if (!advise.sizes) {
    return allowed_ ? wire_error("POSTCOPY_ADVISE without page sizes, but postcopy-ram is on here")
                    : wire_error("POSTCOPY_ADVISE for dirty bitmaps of disks, which this daemon has not");
  }
  if (!allowed_) {
    return wire_error("POSTCOPY_ADVISE, but the capability postcopy-ram is off here: switch it on at both ends");
  }
  if (advise.sizes->target_page != page_bytes) {
    return wire_error(fmt::format("postcopy needs matching target page sizes: {} at the source, {} here",
                                  hex(advise.sizes->target_page), hex(page_bytes)));
  }
  if (advise.sizes->page_sizes == 0 || advise.sizes->page_sizes % page_bytes != 0) {
    return wire_error(fmt::format("the source's page sizes {} are none", hex(advise.sizes->page_sizes)));
  }
  if (own_page_sizes && *own_page_sizes != advise.sizes->page_sizes) {
    return wire_error(fmt::format("postcopy needs matching memory page sizes: {} at the source, {} here",
                                  hex(advise.sizes->page_sizes), hex(*own_page_sizes)));
  }
  phase_ = DestinationPhase::advise;
  return {};
}

Result<void> DestinationState::discard(const stream::command::PostcopyRamDiscard& discard, const BlockShape& block) {
  if (phase_ != DestinationPhase::advise && phase_ != DestinationPhase::discard) {
    return out_of_order("POSTCOPY_RAM_DISCARD");
  }
  const std::uint64_t unit = block.host_pages * page_bytes;
  const std::uint64_t length = block.pages * page_bytes;
  for (const auto& range : discard.ranges) {
    const bool whole = range.start % unit == 0 && range.length % unit == 0 && range.length != 0;
    if (whole && range.start <= length && range.length <= length - range.start) continue;
    return wire_error(
        fmt::format("POSTCOPY_RAM_DISCARD: {}+{} of block '{}' are not pages of it (length {}, pages of {} bytes)",
                    hex(range.start), hex(range.length), printable(block.name), hex(length), unit));
  }
  phase_ = DestinationPhase::discard;
  return {};
}

Result<void> DestinationState::package(const stream::command::Packaged& packaged, bool memory_began) {
  const bool in_time = phase_ == DestinationPhase::advise || phase_ == DestinationPhase::discard;
  if (!in_time || packaged_) return out_of_order("PACKAGED");
  if (!memory_began) return wire_error("PACKAGED before the list of memory blocks");
  if (packaged.length < smallest_package || packaged.length > package_bytes_max) {
    return Error(ErrorKind::limit, fmt::format("PACKAGED with a length of {} bytes (between {} and {} are taken)",
                                               packaged.length, smallest_package, package_bytes_max));
  }
  packaged_ = true;
  return {};
}

Result<void> DestinationState::listen() {
  if (phase_ != DestinationPhase::advise && phase_ != DestinationPhase::discard) return out_of_order("POSTCOPY_LISTEN");
  if (!packaged_) return wire_error("POSTCOPY_LISTEN outside of a package");
  phase_ = DestinationPhase::listen;
  return {};
}

Result<void> DestinationState::run() {
  if (phase_ != DestinationPhase::listen) return out_of_order("POSTCOPY_RUN");
  phase_ = DestinationPhase::running;
  return {};
}

Result<void> DestinationState::end_as_precopy() const {
  if (phase_ == DestinationPhase::none || phase_ == DestinationPhase::advise) return {};
  return wire_error("the stream ends as precopy, but pages were discarded for a postcopy");
}

Result<void> DestinationState::end() {
  if (phase_ != DestinationPhase::running) return out_of_order("the end of the stream");
  phase_ = DestinationPhase::end;
  return {};
}

}  // namespace migrationd::postcopy
