// SPDX-License-Identifier: Apache-2.0
#include "postcopy/page_receiver.hpp"

#include "base/thread.hpp"

#include <pthread.h>

#include <chrono>
#include <utility>

namespace migrationd::postcopy {
namespace {

using namespace std::chrono_literals;

// Behind the main channel's end: between two looks whether the last urgent page has come.
constexpr auto link_look = 1ms;

}  // namespace

PageReceiver::PageReceiver(const Parts& parts)
    : parts_(parts), main_(parts.main, parts.pages, parts.placed, parts.placer, parts.counters) {
  if (parts.preempt != nullptr)
    preempt_.emplace(*parts.preempt, parts.pages, parts.placed, parts.placer, parts.counters);
}

Result<std::unique_ptr<PageReceiver>> PageReceiver::start(const Parts& parts) {
  std::unique_ptr<PageReceiver> receiver(new PageReceiver(parts));
  MD_CHECK(start_thread(receiver->listen_thread_, "start the page reader", [self = receiver.get()] {
    ::pthread_setname_np(::pthread_self(), "listen");
    self->listen();
  }));
  if (!receiver->preempt_) return receiver;
  MD_CHECK(start_thread(receiver->preempt_thread_, "start the urgent pages' reader", [self = receiver.get()] {
    ::pthread_setname_np(::pthread_self(), "preempt");
    self->listen_preempt();
  }));
  return receiver;
}

PageReceiver::~PageReceiver() { end_threads(); }

void PageReceiver::listen() {
  auto end = main_.read_stream(parts_.ram_section_id, parts_.return_channel);
  const std::lock_guard lock(mutex_);
  main_end_ = std::move(end);
  main_ended_at_ = std::chrono::steady_clock::now();
  changed_.notify_all();
}

void PageReceiver::listen_preempt() {
  auto end = preempt_->read_bare();
  const std::lock_guard lock(mutex_);
  preempt_end_ = std::move(end);
  changed_.notify_all();
}

std::optional<Result<void>> PageReceiver::verdict() const {
  if (main_end_ && !*main_end_) return main_end_;
  const bool main_ended = main_end_.has_value();
  const bool patient =
      main_ended && !preempt_end_ && std::chrono::steady_clock::now() < main_ended_at_ + parts_.mark_wait;
  if (main_ended && !preempt_) return Result<void>();
  if (main_ended && !patient && parts_.pages.outstanding() == 0) return Result<void>();
  if (!preempt_end_) return std::nullopt;
  if (!*preempt_end_) return Result<void>(preempt_end_->error());
  if (!**preempt_end_) return Result<void>(Error(ErrorKind::io, "preempt channel: closed before its end"));
  return main_ended ? std::optional(Result<void>()) : std::nullopt;
}

Result<void> PageReceiver::wait() {
  std::optional<Result<void>> result;
  {
    std::unique_lock lock(mutex_);
    while (!(result = verdict())) {
      if (main_end_) {
        changed_.wait_for(lock, link_look);
      } else {
        changed_.wait(lock);
      }
    }
  }
  if (!*result) parts_.main.channel().shutdown();
  end_threads();
  return std::move(*result);
}

void PageReceiver::end_threads() noexcept {
  // A thread that has ended does not mind, one that reads is woken. The main channel still carries our last word when
  // its thread has ended by itself.
  bool main_ended = false;
  {
    const std::lock_guard lock(mutex_);
    main_ended = main_end_.has_value();
  }
  if (!main_ended) parts_.main.channel().shutdown();
  if (parts_.preempt != nullptr) parts_.preempt->channel().shutdown();
  if (listen_thread_.joinable()) listen_thread_.join();
  if (preempt_thread_.joinable()) preempt_thread_.join();
}

}  // namespace migrationd::postcopy
