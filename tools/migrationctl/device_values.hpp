// SPDX-License-Identifier: Apache-2.0
//
// Device sections in words: the bytes of each as JSON by the stream's own description, with the names of its fields.
//
//   integers and timers   numbers; arrays of them lists
//   bool                  true, false
//   struct, subsection    objects; a name that comes again becomes a list
//   everything else       a string of hexadecimal digits
#pragma once

#include "base/result.hpp"
#include "protocol/stream/device_tail.hpp"
#include "protocol/stream/vmdescription.hpp"
#include "tools/migrationctl/text.hpp"

#include <optional>
#include <string>
#include <vector>

namespace migrationd::ctl {

struct DescribedSection {
  std::string name;
  std::uint32_t instance = 0;
  std::uint32_t version = 0;
  std::size_t bytes = 0;
  bool early = false;
  // Absent when there is no description, or it does not fit this section.
  std::optional<Json> values;
};

std::vector<DescribedSection> describe_devices(const stream::DeviceTailContents& devices);

// `values` as indented lines "name = value", hexadecimal strings cut after 32 bytes.
std::string values_text(const Json& values, unsigned indent);

}  // namespace migrationd::ctl
