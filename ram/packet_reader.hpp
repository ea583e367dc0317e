// SPDX-License-Identifier: Apache-2.0
//
// PacketReader: headers and payloads off one multifd channel.
//
// A payload goes where the caller says, without a copy of ours; the header behind it comes with the same read. A
// header's view stays valid until the next header() after it, so it outlives the read of its own payload.
// Errors: those of the channel; ErrorKind::wire when it ends within a packet. Thread: the channel's.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/multifd_packet.hpp"
#include "ram/counters.hpp"
#include "transports/channel.hpp"

#include <array>
#include <optional>
#include <span>
#include <vector>

namespace migrationd::ram {

class PacketReader {
 public:
  // The channel outlives it.
  explicit PacketReader(transports::Channel& channel) noexcept : channel_(channel) {}

  // multifd_header_bytes; nothing when the channel ended before its first byte.
  Result<std::optional<ByteView>> header();
  // Fills the pieces, in order; fewer than IOV_MAX.
  Result<void> payload(std::span<const iovec> pieces);

  // Any thread.
  std::uint64_t total_read() const noexcept { return total_read_.get(); }

 private:
  using Header = std::array<std::byte, stream::multifd_header_bytes>;
  Header& ahead() noexcept { return headers_[1 - current_]; }
  // One read into what is left of the pieces and then into the header ahead.
  Result<std::size_t> read_some();

  transports::Channel& channel_;
  std::array<Header, 2> headers_{};
  std::size_t current_ = 0;  // the header shown last; the other is the one ahead
  std::size_t have_ = 0;     // bytes of the header ahead
  std::vector<iovec> rest_;
  Counter total_read_;
};

}  // namespace migrationd::ram
