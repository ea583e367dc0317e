// SPDX-License-Identifier: Apache-2.0
//
// The package of a postcopy (docs/spec/postcopy.md section 8): LISTEN, device sections, RUN, read whole before any of
// it is acted on.
//
// Device sections have no length and a package has no description, so their borders are found by the chain of headers
// and footers (protocol/stream/footer_scan.hpp). What makes that safer than elsewhere: both ends are known exactly.
// RUN is the last thing in every package, PINGs may stand before it and behind LISTEN.
//
// Pure; thread: any.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/sections.hpp"

#include <cstdint>
#include <vector>

namespace migrationd::postcopy {

struct Package {
  std::vector<std::uint32_t> pings;  // to be answered once the devices are loaded
  std::vector<stream::DeviceSection> sections;
};

// `used_ids`: section ids of the stream before it. Errors: ErrorKind::wire names what stands in the wrong place;
// ErrorKind::limit when the search for borders would take too long.
Result<Package> parse_package(ByteView bytes, std::uint32_t ram_section_id, std::vector<std::uint32_t> used_ids);

}  // namespace migrationd::postcopy
