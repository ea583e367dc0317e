// SPDX-License-Identifier: Apache-2.0
//
// PageEncoder, PageDecoder: what multifd-compression does with the pages of a packet (multifd.md section 6).
//
// One stream per channel for the whole migration: each payload continues the one before it and ends in a flush, so
// that it holds exactly the pages of its packet. Payloads of one channel are therefore decoded in the order in which
// they were encoded, none left out.
//
// Pages are copied out before they are compressed, some at a time: compressors may misbehave on input that changes.
// Thread: one owner.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/multifd_packet.hpp"

#include <memory>
#include <span>

namespace migrationd::ram {

class PageEncoder {
 public:
  // zlib: level 0 to 9; zstd: 0 (the library's default) to 20. No encoder for method none.
  static Result<std::unique_ptr<PageEncoder>> make(stream::MultifdMethod method, int level);
  virtual ~PageEncoder() = default;

  // 1 to multifd_packet_pages pages of page_bytes. The payload, valid until the next call; at most
  // multifd_payload_max bytes.
  virtual Result<ByteView> encode(std::span<const std::byte* const> pages) = 0;
};

class PageDecoder {
 public:
  static Result<std::unique_ptr<PageDecoder>> make(stream::MultifdMethod method);
  virtual ~PageDecoder() = default;

  // All of `payload` must give exactly `out`. Error: ErrorKind::wire; the decoder is of no use afterwards.
  virtual Result<void> decode(ByteView payload, std::span<std::byte> out) = 0;
};

}  // namespace migrationd::ram
