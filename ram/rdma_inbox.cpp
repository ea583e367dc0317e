// SPDX-License-Identifier: Apache-2.0
#include "ram/rdma_inbox.hpp"

#include "base/thread.hpp"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace migrationd::ram {

using rdma::ControlType;

Result<std::optional<ByteView>> next_stream_bytes(RdmaControl& from, bool unasked) {
  MD_TRY(const auto message, unasked ? from.receive_unasked() : from.receive());
  if (!message) return std::optional<ByteView>();
  if (message->type != ControlType::qemu_file) {
    return wire_error(fmt::format("RDMA: Was expecting a {}, but got: {} ({}), length: {}",
                                  rdma::describe_control(ControlType::qemu_file), rdma::control_name(message->type),
                                  static_cast<std::uint32_t>(message->type), message->payload.size()));
  }
  return std::optional<ByteView>(message->payload);
}

Result<std::unique_ptr<RdmaInbox>> RdmaInbox::start(RdmaControl& from, bool first_unasked) {
  std::unique_ptr<RdmaInbox> inbox(new RdmaInbox(from, first_unasked));
  MD_CHECK(start_thread(inbox->thread_, "start the RDMA return path's inbox", [self = inbox.get()] { self->run(); }));
  return inbox;
}

RdmaInbox::~RdmaInbox() {
  from_.disconnect();
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void RdmaInbox::open() noexcept {
  {
    const std::lock_guard lock(mutex_);
    open_ = true;
  }
  changed_.notify_all();
}

void RdmaInbox::run() {
  ::pthread_setname_np(::pthread_self(), "rdma/inbox");
  auto end = take_all();
  {
    const std::lock_guard lock(mutex_);
    ended_ = std::move(end);
  }
  changed_.notify_all();
}

Result<void> RdmaInbox::take_all() {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return closing_ || open_; });
  }
  for (bool unasked = first_unasked_;; unasked = false) {
    MD_TRY(const auto bytes, next_stream_bytes(from_, unasked));
    if (!bytes) return {};
    std::unique_lock lock(mutex_);
    unread_.erase(unread_.begin(), unread_.begin() + static_cast<std::ptrdiff_t>(read_));
    read_ = 0;
    unread_.insert(unread_.end(), bytes->begin(), bytes->end());
    changed_.notify_all();
    // The next message is asked for only when there is room.
    changed_.wait(lock, [this] { return closing_ || unread_.size() - read_ < most_unread; });
    if (closing_) return {};
  }
}

Result<std::size_t> RdmaInbox::read(std::span<const iovec> into) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return read_ < unread_.size() || ended_; });
  if (read_ == unread_.size()) {
    if (!*ended_) return ended_->error();
    return std::size_t{0};
  }
  std::size_t done = 0;
  for (const iovec& piece : into) {
    const std::size_t now = std::min(piece.iov_len, unread_.size() - read_);
    if (now != 0) std::memcpy(piece.iov_base, unread_.data() + read_, now);
    read_ += now;
    done += now;
  }
  if (read_ == unread_.size()) {
    unread_.clear();
    read_ = 0;
  }
  changed_.notify_all();
  return done;
}

}  // namespace migrationd::ram
