// SPDX-License-Identifier: Apache-2.0
//
// Section borders without a description: by the chain of headers and footers.
//
// A footer repeats its section's id, and what follows one is another section's header or the end. The scan takes
// the first footer that is followed by a plausible header, goes on from there, and comes back when the chain
// breaks. It is best effort: device state may hold such bytes by chance, or because a guest put them there.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/vmdescription.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace migrationd::stream {

// Bytes that the scans of one stream may look at together.
struct ScanBudget {
  std::uint64_t bytes;
};

// Name and instance that a section must have; from a description whose sizes do not fit.
struct ExpectedSection {
  std::string name;
  std::uint32_t instance_id = 0;
};

struct ScanRules {
  std::uint32_t ram_section_id = 0;
  // Section ids used before (early sections); they cannot come again.
  std::vector<std::uint32_t> used_ids;
  // If not null, exactly these sections in this order.
  const std::vector<ExpectedSection>* expected = nullptr;
  // If not empty, a section of this name must be among them; a chain without it is not the right one.
  std::string required_name = {};
};

// Splits `device_bytes` (from the first 04 byte to before EOF). An error when no chain covers them exactly.
Result<std::vector<SectionSpan>> scan_sections(ByteView device_bytes, const ScanRules& rules, ScanBudget& budget);

// Finds the end of a FULL section that comes before the first PART, while its bytes arrive.
class EarlySectionScan {
 public:
  EarlySectionScan(std::uint32_t section_id, std::uint32_t ram_section_id) noexcept
      : section_id_(section_id), ram_section_id_(ram_section_id) {}

  // `available` begins with the section's body, always at the same start; looks only at what is new. Ready: the length
  // of the body; consumed() counts body and footer.
  Decoded<std::size_t> feed(ByteView available);

 private:
  std::uint32_t section_id_;
  std::uint32_t ram_section_id_;
  std::size_t searched_ = 0;
};

}  // namespace migrationd::stream
