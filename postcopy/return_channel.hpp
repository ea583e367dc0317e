// SPDX-License-Identifier: Apache-2.0
//
// ReturnChannel: the destination's writer of the return path, shared by all its threads.
//
// The mover answers PINGs and sends bitmaps, the listen thread answers PINGs, the fault thread asks for pages: one lock
// around one message keeps them whole. It also remembers the block that the last request named, per connection, and it
// is *closed* while postcopy is paused: requests made then are kept by DestinationPages and asked again later.
//
// Thread: any. Lock order: none is taken inside. A write waits as long as the source does not read; shutting the
// channel down ends it.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "postcopy/block_shape.hpp"
#include "postcopy/destination_pages.hpp"
#include "protocol/stream/return_path.hpp"
#include "transports/channel.hpp"

#include <mutex>
#include <optional>
#include <vector>

namespace migrationd::postcopy {

class ReturnChannel {
 public:
  // The shapes outlive it; `host_pages` is what one request asks for.
  explicit ReturnChannel(const std::vector<BlockShape>& blocks) noexcept : blocks_(blocks) {}

  // A connection that may be asked for pages; the channel stays until close(). `first`: written before any request.
  Result<void> open(transports::Channel& channel, const std::optional<stream::ReturnMessage>& first = std::nullopt);
  void close() noexcept;

  // After a failure the channel is shut down: nothing may follow half a message.
  Result<void> send(const stream::ReturnMessage& message);
  // `count` host pages from `page` on. True: it was written. False: closed, or it became so by a write that failed; the
  // reader of that channel will find it broken too.
  bool request(HostPage page, std::uint64_t count = 1);

  // To a channel that open() was not called for yet (the handshake of a recovery).
  static Result<void> send_to(transports::Channel& channel, const stream::ReturnMessage& message);
  static Result<void> send_bitmap(transports::Channel& channel, const std::string& block, ByteView bitmap);

 private:
  Result<void> send_locked(const stream::ReturnMessage& message);

  const std::vector<BlockShape>& blocks_;
  std::mutex mutex_;
  transports::Channel* channel_ = nullptr;
  std::optional<std::size_t> named_;  // the block of the last request
};

}  // namespace migrationd::postcopy
