// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/incoming_gate.hpp"

#include "base/bytes.hpp"
#include "base/limits.hpp"
#include "base/log.hpp"
#include "protocol/stream/header.hpp"
#include "protocol/stream/multifd_packet.hpp"
#include "protocol/stream/return_path.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <utility>

namespace migrationd::migration {
namespace {

using SteadyClock = std::chrono::steady_clock;

// Candidates kept at once beside the channels that are to come; one more drops the oldest. A flood of probes must not
// take all descriptors.
constexpr std::size_t max_candidates = 16;
// A header that came in pieces keeps its socket readable: look again after this, not in a busy loop.
constexpr auto recheck = std::chrono::milliseconds(5);

// Between two tries to accept when descriptors or memory are short.
constexpr auto resource_pause = std::chrono::milliseconds(50);

struct Candidate {
  std::unique_ptr<transports::Channel> channel;
  SteadyClock::time_point deadline;
};

enum class Verdict { main, multifd, wait, drop };

// True when the shorter of the two is how the other begins.
bool begins_alike(ByteView a, ByteView b) {
  const auto count = static_cast<std::ptrdiff_t>(std::min(a.size(), b.size()));
  return std::equal(a.begin(), a.begin() + count, b.begin());
}

// Looks at what has come without taking it.
Verdict examine(const Candidate& candidate, ByteView begins, bool multifd, std::string& reason) {
  std::array<std::byte, stream::multifd_hello_bytes> buffer{};
  static_assert(buffer.size() >= stream::header_bytes);
  const ssize_t count = ::recv(candidate.channel->readable_fd(), buffer.data(), buffer.size(), MSG_PEEK | MSG_DONTWAIT);
  if (count == 0) {
    reason = "closed without a header";
    return Verdict::drop;
  }
  if (count < 0) {
    if (errno == EAGAIN || errno == EINTR) return Verdict::wait;
    reason = Error::from_errno("read").text();
    return Verdict::drop;
  }
  const ByteView seen = ByteView(buffer).first(static_cast<std::size_t>(count));
  if (begins_alike(seen, begins)) return seen.size() >= begins.size() ? Verdict::main : Verdict::wait;
  if (multifd && stream::may_begin_multifd(seen))
    return seen.size() == stream::multifd_hello_bytes ? Verdict::multifd : Verdict::wait;
  reason = multifd ? fmt::format("neither a migration stream nor a multifd channel (begins with {})",
                                 printable(as_text(seen.first(std::min<std::size_t>(4, seen.size())))))
                   : "not a migration stream";
  return Verdict::drop;
}

// "01020304-0506-0708-090a-0b0c0d0e0f10"
std::string text_of(const stream::Uuid& uuid) {
  std::string out;
  for (std::size_t i = 0; i < uuid.size(); ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) out += '-';
    out += fmt::format("{:02x}", static_cast<unsigned>(uuid[i]));
  }
  return out;
}

class Door {
 public:
  Door(transports::Listener& listener, StopSource& stop, const ExpectedSource& expected)
      : listener_(listener), stop_(stop), expected_(expected), uuid_(expected.uuid) {
    source_.multifd.resize(expected.multifd_channels);
    ByteWriter header;
    stream::encode_header(header);
    if (expected.patience) no_longer_ = SteadyClock::now() + *expected.patience;
    begins_ = expected.main_begins.empty() ? std::move(header).take() : expected.main_begins;
  }

  Result<IncomingChannels> wait_for_source() {
    while (true) {
      if (stop_.requested() || replaced()) return cancelled_error();
      MD_CHECK(wait());
      MD_CHECK(take_connections());
      MD_CHECK(examine_candidates());
      if (source_.main && here_ == expected_.multifd_channels) {
        if (uuid_ && *uuid_ != stream::Uuid{} && here_ > 0) source_.uuid = uuid_;
        return std::move(source_);
      }
      // Not before everything that stands at the door was looked at: a source may have sent all it has and closed by
      // the time its channels are.
      if (main_gone_)
        return wire_error(fmt::format("the source went away while its multifd channels were awaited ({})", how_many()));
      MD_CHECK(check_patience());
    }
  }

  // A source whose pages are still on their way may have written its last byte already: without a word it would keep
  // its guest stopped, for a machine that nobody has. One that wants no answer does not read this.
  void say_no() {
    if (!source_.main) return;
    ByteWriter out;
    stream::encode_return_message(out, stream::reply::Shut{1});
    [[maybe_unused]] const auto sent =
        ::send(source_.main->readable_fd(), out.view().data(), out.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  }

 private:
  bool replaced() const noexcept { return expected_.replaced != nullptr && expected_.replaced->requested(); }

  Result<void> wait() {
    std::vector<pollfd> fds = {{stop_.fd(), POLLIN, 0}, {listener_.fd(), POLLIN, 0}};
    // While the channels are awaited the main stream's bytes stay unread; only its end is of interest.
    if (source_.main) fds.push_back({source_.main->readable_fd(), POLLRDHUP, 0});
    auto next = std::min(patience_, source_.main ? SteadyClock::time_point::max() : no_longer_);
    for (const Candidate& candidate : candidates_) {
      // A candidate with half a header is readable all the time; it is looked at after `recheck` instead.
      if (!partial_) fds.push_back({candidate.channel->readable_fd(), POLLIN, 0});
      next = std::min(next, candidate.deadline);
    }
    int timeout = -1;
    if (next != SteadyClock::time_point::max()) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - SteadyClock::now()).count() + 1;
      timeout = static_cast<int>(std::clamp<long>(left, 0, partial_ ? recheck.count() : 60000));
    }
    if (expected_.replaced != nullptr) fds.push_back({expected_.replaced->fd(), POLLIN, 0});
    if (::poll(fds.data(), fds.size(), timeout) < 0 && errno != EINTR) return Error::from_errno("wait for a source");
    main_gone_ = source_.main && fds[2].revents != 0;
    return {};
  }

  std::string how_many() const { return fmt::format("{} of {} have come", here_, expected_.multifd_channels); }

  Result<void> take_connections() {
    while (true) {
      auto accepted = listener_.accept_ready(stop_);
      if (!accepted) return make_room(accepted.error());
      std::unique_ptr<transports::Channel> channel = std::move(*accepted);
      if (!channel) return {};
      if (candidates_.size() == max_candidates + expected_.multifd_channels) {
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

  Result<void> examine_candidates() {
    partial_ = false;
    const auto now = SteadyClock::now();
    for (auto it = candidates_.begin(); it != candidates_.end();) {
      std::string reason;
      Verdict verdict = examine(*it, begins_, expected_.multifd_channels > 0, reason);
      if (verdict == Verdict::main && source_.main) {
        reason = "a second migration stream";
        verdict = Verdict::drop;
      }
      if (verdict == Verdict::wait && now >= it->deadline) {
        reason = "sent no migration header in time";
        verdict = Verdict::drop;
      }
      if (verdict == Verdict::wait) {
        partial_ = partial_ || has_bytes(*it);
        ++it;
        continue;
      }
      std::unique_ptr<transports::Channel> channel = std::move(it->channel);
      it = candidates_.erase(it);
      MD_CHECK(sort(std::move(channel), verdict, reason));
      // The first is the source; who stands behind it is not asked any more.
      if (source_.main && expected_.multifd_channels == 0) return take_silent();
    }
    return {};
  }

  // The source's second connection, if it is there: the first of those that have not said a word.
  Result<void> take_silent() {
    const auto silent = std::find_if(candidates_.begin(), candidates_.end(),
                                     [](const Candidate& candidate) { return !has_bytes(candidate); });
    if (expected_.preempt && silent != candidates_.end()) source_.preempt = std::move(silent->channel);
    return {};
  }

  Result<void> sort(std::unique_ptr<transports::Channel> channel, Verdict verdict, const std::string& reason) {
    if (verdict == Verdict::drop) {
      last_dropped_ = fmt::format("{}: {}", channel->describe(), reason);
      log::warning(fmt::format("incoming: {} dropped: {}", channel->describe(), reason));
      return {};
    }
    if (verdict == Verdict::multifd) {
      const std::string from = channel->describe();
      auto taken = take_multifd(std::move(channel));
      if (!taken) return std::move(taken).error().with(from);
      return taken;
    }
    source_.main = std::move(channel);
    patience_ = SteadyClock::now() + channels_wait;
    return {};
  }

  Result<void> take_multifd(std::unique_ptr<transports::Channel> channel) {
    std::array<std::byte, stream::multifd_hello_bytes> bytes{};
    const iovec piece{bytes.data(), bytes.size()};
    // All of it was seen a moment ago.
    MD_TRY(const std::size_t got, channel->read({&piece, 1}));
    if (got != bytes.size()) return wire_error("multifd: the first packet cannot be read");
    MD_TRY(const stream::MultifdHello hello, stream::decode_multifd_hello(bytes));
    if (!uuid_) uuid_ = hello.uuid;
    if (hello.uuid != *uuid_)
      return wire_error(fmt::format("multifd: received uuid '{}' and expected uuid '{}' for channel {}",
                                    text_of(hello.uuid), text_of(*uuid_), hello.channel));
    if (hello.channel >= source_.multifd.size())
      return wire_error(
          fmt::format("multifd: received channel id {} is greater than number of channels {} "
                      "(multifd-channels must be the same on both sides)",
                      hello.channel, source_.multifd.size()));
    auto& place = source_.multifd[hello.channel];
    if (place) return wire_error(fmt::format("multifd: received id '{}' already setup", hello.channel));
    place = std::move(channel);
    ++here_;
    patience_ = std::min(patience_, SteadyClock::now() + channels_wait);
    return {};
  }

  Result<void> check_patience() {
    if (!source_.main && SteadyClock::now() >= no_longer_) return wire_error("no source connected in time");
    if (SteadyClock::now() < patience_) return {};
    if (source_.main) {
      std::string text =
          fmt::format("multifd channels are missing: {} (multifd-channels must be the same on both sides)", how_many());
      if (!last_dropped_.empty()) text += "; dropped: " + last_dropped_;
      return wire_error(std::move(text));
    }
    log::warning(fmt::format("incoming: {} multifd channels dropped: no migration stream came with them", here_));
    for (auto& channel : source_.multifd) channel.reset();
    here_ = 0;
    uuid_ = expected_.uuid;
    patience_ = SteadyClock::time_point::max();
    return {};
  }

  static bool has_bytes(const Candidate& candidate) {
    std::byte byte{};
    return ::recv(candidate.channel->readable_fd(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 1;
  }

  transports::Listener& listener_;
  StopSource& stop_;
  const ExpectedSource expected_;
  Bytes begins_;  // of the main stream
  std::vector<Candidate> candidates_;
  IncomingChannels source_;
  std::size_t here_ = 0;              // multifd channels
  std::optional<stream::Uuid> uuid_;  // that all hellos must have
  SteadyClock::time_point patience_ = SteadyClock::time_point::max();
  SteadyClock::time_point no_longer_ = SteadyClock::time_point::max();  // without a main stream
  std::string last_dropped_;
  bool main_gone_ = false;
  bool partial_ = false;
  bool short_of_resources_ = false;  // said once
};

}  // namespace

Result<IncomingChannels> accept_source(transports::Listener& listener, StopSource& stop,
                                       const ExpectedSource& expected) {
  Door door(listener, stop, expected);
  auto source = door.wait_for_source();
  if (!source) door.say_no();
  return source;
}

Result<std::unique_ptr<transports::Channel>> accept_preempt(transports::Listener& listener, StopSource& stop,
                                                            const transports::Channel& main) {
  const auto deadline = SteadyClock::now() + channels_wait;
  while (true) {
    MD_TRY(auto channel, listener.accept_ready(stop));
    if (channel) return channel;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - SteadyClock::now()).count();
    if (left <= 0) return wire_error("preempt channel: the source did not connect in time");
    pollfd fds[] = {{stop.fd(), POLLIN, 0}, {listener.fd(), POLLIN, 0}, {main.readable_fd(), POLLRDHUP, 0}};
    if (::poll(fds, 3, static_cast<int>(left)) < 0 && errno != EINTR)
      return Error::from_errno("wait for the preempt channel");
    if (fds[0].revents != 0) return cancelled_error();
    if (fds[2].revents != 0) return wire_error("preempt channel: the source went away before it connected");
  }
}

}  // namespace migrationd::migration
