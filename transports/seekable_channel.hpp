// SPDX-License-Identifier: Apache-2.0
//
// SeekableChannel: a file seen as a stream that can jump. Reading and writing as a Channel go on from position();
// read_at() and write_at() leave the position alone.
//
// For the parts of a file that are no pages: headers, bitmaps, device state. Blocking; its owner's thread.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "transports/channel.hpp"

#include <cstdint>
#include <span>

namespace migrationd::transports {

class SeekableChannel : public Channel {
 public:
  // From byte 0 of the file, whatever offset the stream began at.
  virtual std::uint64_t position() const noexcept = 0;
  virtual void seek(std::uint64_t position) noexcept = 0;
  // The file's present size; of a block device, the device's.
  virtual Result<std::uint64_t> size() const = 0;
  // All of it, or an error: ErrorKind::wire when the file ends first.
  virtual Result<void> read_at(std::uint64_t offset, std::span<std::byte> into) = 0;
  virtual Result<void> write_at(std::uint64_t offset, ByteView from) = 0;
};

}  // namespace migrationd::transports
