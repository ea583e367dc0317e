// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/cpr_intake.hpp"

#include "base/log.hpp"
#include "base/thread.hpp"
#include "daemon/migration/cpr_channel.hpp"
#include "daemon/migration/cpr_limits.hpp"

#include <fmt/format.h>

#include <chrono>
#include <utility>

namespace migrationd::migration {
namespace {

// Between two tries to accept when descriptors or memory are short.
constexpr auto accept_pause = std::chrono::milliseconds(50);

std::uint64_t next_intake_number() {
  static std::uint64_t last = 0;
  return ++last;
}

}  // namespace

CprIntake::CprIntake(transports::Listener& socket, CprListener& listener, Post post, std::unique_ptr<StopSource> stop)
    : number_(next_intake_number()),
      socket_(socket),
      listener_(listener),
      post_(std::move(post)),
      stop_(std::move(stop)) {}

Result<std::unique_ptr<CprIntake>> CprIntake::start(transports::Listener& socket, CprListener& listener, Post post) {
  MD_TRY(auto stop, StopSource::make());
  std::unique_ptr<CprIntake> intake(new CprIntake(socket, listener, std::move(post), std::move(stop)));
  MD_CHECK(
      start_thread(intake->thread_, "start the thread of the cpr channel", [self = intake.get()] { self->run(); }));
  return intake;
}

CprIntake::~CprIntake() {
  stop_->request();
  if (thread_.joinable()) thread_.join();
}

void CprIntake::run() {
  while (take_one()) {
  }
}

bool CprIntake::take_one() {
  auto channel = socket_.accept(*stop_);
  if (!channel) {
    if (channel.error().is_cancelled()) return false;
    log::warning(fmt::format("cpr channel: {}; trying again", channel.error().text()));
    return stop_->sleep_for(accept_pause);
  }
  const int fd = (*channel)->readable_fd();
  auto received = receive_descriptors(fd, *stop_, std::chrono::steady_clock::now() + limits::cpr_list_wait);
  if (!received) {
    if (received.error().is_cancelled()) return false;
    // Closed before the report: whoever hears of it finds the old process told.
    channel->reset();
    report(std::move(received).error());
    return true;
  }
  if (received->untouched) {
    log::warning("cpr channel: a connection that brought nothing was dropped");
    return true;
  }
  report(std::move(received->entries));
  if (!await_old_process(fd, *stop_)) return false;
  post_([&listener = listener_, number = number_] { listener.cpr_given_up(number); });
  return true;
}

void CprIntake::report(Result<std::vector<cpr::NamedDescriptor>> descriptors) {
  // A std::function is copied, descriptors are not.
  auto shared = std::make_shared<Result<std::vector<cpr::NamedDescriptor>>>(std::move(descriptors));
  post_([&listener = listener_, number = number_, shared] { listener.cpr_arrived(number, std::move(*shared)); });
}

}  // namespace migrationd::migration
