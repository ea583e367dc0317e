// SPDX-License-Identifier: Apache-2.0
#include "postcopy/return_channel.hpp"

#include "protocol/stream/layout.hpp"

namespace migrationd::postcopy {

namespace {

Result<void> write_all(transports::Channel& channel, ByteView bytes) {
  const iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
  return channel.write({&piece, 1});
}

}  // namespace

Result<void> ReturnChannel::send_to(transports::Channel& channel, const stream::ReturnMessage& message) {
  ByteWriter out;
  stream::encode_return_message(out, message);
  return write_all(channel, out.view());
}

Result<void> ReturnChannel::send_bitmap(transports::Channel& channel, const std::string& block, ByteView bitmap) {
  ByteWriter out;
  stream::encode_return_message(out, stream::reply::RecvBitmap{block});
  stream::encode_received_bitmap(out, bitmap);
  return write_all(channel, out.view());
}

Result<void> ReturnChannel::open(transports::Channel& channel, const std::optional<stream::ReturnMessage>& first) {
  const std::lock_guard lock(mutex_);
  if (first) MD_CHECK(send_to(channel, *first));
  channel_ = &channel;
  named_.reset();
  return {};
}

void ReturnChannel::close() noexcept {
  const std::lock_guard lock(mutex_);
  channel_ = nullptr;
}

Result<void> ReturnChannel::send(const stream::ReturnMessage& message) {
  const std::lock_guard lock(mutex_);
  return send_locked(message);
}

Result<void> ReturnChannel::send_locked(const stream::ReturnMessage& message) {
  if (channel_ == nullptr) return Error(ErrorKind::io, "the return path is closed");
  auto sent = send_to(*channel_, message);
  if (!sent) {
    channel_->shutdown();
    channel_ = nullptr;
  }
  return sent;
}

bool ReturnChannel::request(HostPage page, std::uint64_t count) {
  const std::lock_guard lock(mutex_);
  stream::reply::RequestPages message;
  message.start = page.page * stream::page_bytes;
  message.length = static_cast<std::uint32_t>(count * blocks_[page.block].host_pages * stream::page_bytes);
  if (named_ != page.block) message.block = blocks_[page.block].name;
  if (!send_locked(message)) return false;
  named_ = page.block;
  return true;
}

}  // namespace migrationd::postcopy
