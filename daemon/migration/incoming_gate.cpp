// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/incoming_gate.hpp"

#include "base/bytes.hpp"
#include "base/limits.hpp"
#include "base/log.hpp"
#include "protocol/stream/header.hpp"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <vector>

namespace migrationd::migration {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Candidates kept at once; one more drops the oldest. A source needs one, a flood of probes must not take all
// descriptors.
constexpr std::size_t max_candidates = 16;
// A header that came in pieces keeps its socket readable: look again after this, not in a busy loop.
constexpr auto recheck = std::chrono::milliseconds(5);

// Between two tries to accept when descriptors or memory are short.
constexpr auto resource_pause = std::chrono::milliseconds(50);

struct Candidate {
  std::unique_ptr<transports::Channel> channel;
  SteadyClock::time_point deadline;
};

enum class Verdict { source, wait, drop };

// Looks at what has come without taking it.
Verdict examine(const Candidate& candidate, std::string& reason) {
  std::array<std::byte, stream::header_bytes> seen{};
  const ssize_t count = ::recv(candidate.channel->readable_fd(), seen.data(), seen.size(), MSG_PEEK | MSG_DONTWAIT);
  if (count == 0) {
    reason = "closed without a header";
    return Verdict::drop;
  }
  if (count < 0) {
    if (errno == EAGAIN || errno == EINTR) return Verdict::wait;
    reason = Error::from_errno("read").text();
    return Verdict::drop;
  }
  const auto have = static_cast<std::size_t>(count);
  ByteWriter header;
  stream::encode_header(header);
  const ByteView expected = header.view();
  if (!std::equal(seen.begin(), seen.begin() + count, expected.begin())) {
    reason = "not a migration stream";
    return Verdict::drop;
  }
  return have == seen.size() ? Verdict::source : Verdict::wait;
}

class Door {
 public:
  Door(transports::Listener& listener, StopSource& stop) : listener_(listener), stop_(stop) {}

  Result<std::unique_ptr<transports::Channel>> wait_for_source() {
    while (true) {
      if (stop_.requested()) return cancelled_error();
      MD_CHECK(wait());
      MD_CHECK(take_connections());
      if (auto channel = examine_candidates()) return channel;
    }
  }

 private:
  Result<void> wait() {
    std::vector<pollfd> fds = {{stop_.fd(), POLLIN, 0}, {listener_.fd(), POLLIN, 0}};
    auto next = SteadyClock::time_point::max();
    for (const Candidate& candidate : candidates_) {
      // A candidate with half a header is readable all the time; it is looked at after `recheck` instead.
      if (!partial_) fds.push_back({candidate.channel->readable_fd(), POLLIN, 0});
      next = std::min(next, candidate.deadline);
    }
    int timeout = -1;
    if (!candidates_.empty()) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - SteadyClock::now()).count() + 1;
      timeout = static_cast<int>(std::clamp<long>(left, 0, partial_ ? recheck.count() : 60000));
    }
    if (::poll(fds.data(), fds.size(), timeout) < 0 && errno != EINTR) return Error::from_errno("wait for a source");
    return {};
  }

  Result<void> take_connections() {
    while (true) {
      auto accepted = listener_.accept_ready(stop_);
      if (!accepted) return make_room(accepted.error());
      std::unique_ptr<transports::Channel> channel = std::move(*accepted);
      if (!channel) return {};
      if (candidates_.size() == max_candidates) {
        log::warning(
            fmt::format("incoming: {} dropped: too many connections wait", candidates_.front().channel->describe()));
        candidates_.erase(candidates_.begin());
      }
      candidates_.push_back({std::move(channel), SteadyClock::now() + limits::header_wait});
    }
  }

  // Out of descriptors or memory is no reason to give the machine up: probes are let go first, then it waits for others
  // of this process or host to be done. Any other failure is the listener's end.
  Result<void> make_room(const Error& error) {
    const int number = error.sys_errno();
    if (number != EMFILE && number != ENFILE && number != ENOBUFS && number != ENOMEM) return error;
    if (!short_of_resources_) log::warning(fmt::format("incoming: {}; trying again", error.text()));
    short_of_resources_ = true;
    if (!candidates_.empty()) candidates_.erase(candidates_.begin());
    if (!stop_.sleep_for(resource_pause)) return cancelled_error();
    return {};
  }

  std::unique_ptr<transports::Channel> examine_candidates() {
    partial_ = false;
    const auto now = SteadyClock::now();
    for (auto it = candidates_.begin(); it != candidates_.end();) {
      std::string reason;
      Verdict verdict = examine(*it, reason);
      if (verdict == Verdict::source) return std::move(it->channel);
      if (verdict == Verdict::wait && now >= it->deadline) {
        reason = "sent no migration header in time";
        verdict = Verdict::drop;
      }
      if (verdict == Verdict::drop) {
        log::warning(fmt::format("incoming: {} dropped: {}", it->channel->describe(), reason));
        it = candidates_.erase(it);
      } else {
        partial_ = partial_ || has_bytes(*it);
        ++it;
      }
    }
    return nullptr;
  }

  static bool has_bytes(const Candidate& candidate) {
    std::byte byte{};
    return ::recv(candidate.channel->readable_fd(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
  }

  transports::Listener& listener_;
  StopSource& stop_;
  std::vector<Candidate> candidates_;
  bool partial_ = false;
  bool short_of_resources_ = false;  // said once
};

}  // namespace

Result<std::unique_ptr<transports::Channel>> accept_source(transports::Listener& listener, StopSource& stop) {
  return Door(listener, stop).wait_for_source();
}

}  // namespace migrationd::migration
