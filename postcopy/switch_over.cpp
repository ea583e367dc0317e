// SPDX-License-Identifier: Apache-2.0
#include "postcopy/switch_over.hpp"

#include "protocol/stream/layout.hpp"

#include <algorithm>
#include <limits>
#include <utility>

namespace migrationd::postcopy {

using stream::command::PostcopyRamDiscard;

stream::command::PostcopyAdvise advise(std::span<const BlockShape> blocks) {
  stream::command::PostcopyAdvise::Sizes sizes;
  sizes.target_page = stream::page_bytes;
  for (const BlockShape& block : blocks) sizes.page_sizes |= block.host_pages * stream::page_bytes;
  return {sizes};
}

std::vector<PostcopyRamDiscard> plan_discards(std::span<const BlockShape> blocks, ram::DirtyBitmaps& lacking) {
  std::vector<PostcopyRamDiscard> commands;
  for (std::size_t index = 0; index < blocks.size(); ++index) {
    const std::uint64_t step = blocks[index].host_pages;
    Bitmap& bitmap = lacking[index];
    bool begun = false;
    for (std::uint64_t page = bitmap.find_set(0); page < bitmap.size();) {
      const std::uint64_t first = page / step * step;
      // A run ends at the first host page without a bit.
      std::uint64_t end = first;
      while (end < bitmap.size() && bitmap.find_set(end, end + step) < end + step) {
        bitmap.set_range(end, step);
        // Long runs in one go where host pages are target pages.
        end = step == 1 ? bitmap.find_clear(end) : end + step;
      }
      if (!begun || commands.back().ranges.size() == discard_ranges) commands.push_back({blocks[index].name, {}});
      begun = true;
      commands.back().ranges.push_back({first * stream::page_bytes, (end - first) * stream::page_bytes});
      page = bitmap.find_set(end);
    }
  }
  if (commands.empty() && !blocks.empty()) {
    lacking[0].set_range(0, blocks[0].host_pages);
    return formal_discard(blocks);
  }
  return commands;
}

std::vector<PostcopyRamDiscard> formal_discard(std::span<const BlockShape> blocks) {
  if (blocks.empty()) return {};
  return {{blocks[0].name, {{0, blocks[0].host_pages * stream::page_bytes}}}};
}

Result<void> encode_package(ByteWriter& out, std::span<const stream::DeviceSection> devices) {
  ByteWriter package;
  stream::encode_command(package, stream::command::PostcopyListen{});
  for (const stream::DeviceSection& section : devices) stream::encode_device_section(package, section);
  stream::encode_command(package, stream::command::Ping{ping_in_package});
  stream::encode_command(package, stream::command::PostcopyRun{});
  if (package.size() > std::numeric_limits<std::uint32_t>::max()) {
    return Error(ErrorKind::limit, "the devices' state is larger than a postcopy package can be (4 GiB)");
  }
  stream::encode_command(out, stream::command::Packaged{static_cast<std::uint32_t>(package.size())});
  out.bytes(package.view());
  return {};
}

}  // namespace migrationd::postcopy
