// SPDX-License-Identifier: Apache-2.0
//
// Going through a file with a machine in it, from the header to the description, whatever kind it is: what inspect,
// verify and convert share.
//
// The walk proves what a destination proves: order and footers of sections, block list, places, every page within its
// block, device sections that account for every byte, nothing behind the end. It keeps no page: memory is bounded by a
// receive buffer, one bitmap, and the device sections with their description (base/limits.hpp).
//
// One thread; a stop ends it between reads.
#pragma once

#include "base/bitmap.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/device_tail.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "ram/mapped_layout.hpp"
#include "tools/migrationctl/file_access.hpp"
#include "transports/channel.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace migrationd::ctl {

struct WalkedBlock {
  stream::RamSetupBlock block;
  std::optional<ram::MappedPlace> place;  // mapped-ram
  std::uint64_t pages() const noexcept { return block.used_length / stream::page_bytes; }
};

// What was found so far; after an error too.
struct WalkedImage {
  std::optional<stream::Configuration> configuration;
  std::uint32_t ram_section_id = 0;
  std::vector<WalkedBlock> blocks;
  bool memory_complete = false;
  std::optional<stream::DeviceTailContents> devices;  // once all is proved
};

// Told of everything in the order of the stream. `block` is an index into WalkedImage::blocks, pages are counted from
// the block's start and lie within it. An error ends the walk.
class ImageVisitor {
 public:
  virtual ~ImageVisitor() = default;
  virtual Result<void> blocks_known(const WalkedImage&) { return {}; }
  // Plain streams. A page may come more than once; the last one counts.
  virtual Result<void> zero_pages(std::size_t, std::uint64_t /*first*/, std::uint64_t /*count*/) { return {}; }
  virtual Result<void> page(std::size_t, std::uint64_t /*page*/, ByteView /*4096 bytes*/) { return {}; }
  // A delta or a zlib page: record.payload.
  virtual Result<void> encoded_page(std::size_t, std::uint64_t /*page*/, const stream::RamRecord&) { return {}; }
  // mapped-ram: one per block, in order; the pages are at the block's place.
  virtual Result<void> bitmap(std::size_t, const Bitmap&) { return {}; }
};

// Where the stream of `image` is read; with `tap` every byte of it is also given to that, in order.
using StreamTap = std::function<Result<void>(ByteView)>;

// The image is one of the five kinds with a stream in it (check_usable()).
Result<void> walk_image(const OpenedImage& image, ImageVisitor& visitor, StopSource& stop, WalkedImage& found,
                        const StreamTap& tap = {});

}  // namespace migrationd::ctl
