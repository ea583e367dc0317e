// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/rdma_connections.hpp"

#include "base/limits.hpp"
#include "base/log.hpp"
#include "protocol/rdma/hello.hpp"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <random>
#include <utility>

namespace migrationd::migration {
namespace {

using ram::RdmaChannel;
using ram::RdmaConnections;
using ram::RdmaControl;
using ram::RdmaLane;
using ram::RdmaSide;
using transports::RdmaDomain;
using transports::RdmaLink;
using SteadyClock = std::chrono::steady_clock;
using std::chrono::milliseconds;

// A destination accepts when it gets to it; its adapter and its kernel are there all the time.
constexpr auto main_limit = std::chrono::seconds(60);
// Whoever accepted the first connection is waiting for the others.
constexpr auto further_limit = std::chrono::seconds(5);
// QEMU's destination writes one message of its return path that nobody asked for.
constexpr unsigned unasked_on_return_path = 1;

Result<rdma::Hello> establish(RdmaLink& link, const rdma::Hello& hello, StopSource& stop, milliseconds limit) {
  MD_CHECK(link.establish(rdma::encode_hello(hello), stop, limit));
  return rdma::decode_hello(link.peer_private_data());
}

// --- the source -------------------------------------------------------------------------------------------------

class Connecting {
 public:
  Connecting(transports::RdmaFabric& fabric, const transports::InetAddress& to, StopSource& stop)
      : fabric_(fabric), to_(to), stop_(stop) {}

  Result<std::unique_ptr<RdmaChannel>> run(const RdmaWishes& wishes) {
    MD_CHECK(connect_main(wishes));
    if (wishes.return_path) {
      auto connected = connect_return_path();
      if (!connected) {
        return std::move(connected).error().with(
            "RDMA: the second connection, for the return path (return-path or postcopy-ram must be on at both ends; "
            "QEMU before 8.0 takes one with postcopy-ram only)");
      }
    }
    for (std::uint8_t lane = 1; lane <= settled_.lanes; ++lane) {
      auto connected = connect_lane(lane);
      if (!connected) return std::move(connected).error().with(fmt::format("RDMA: queue pair {}", lane + 1));
    }
    return RdmaChannel::make(RdmaSide::source, std::move(made_));
  }

 private:
  Result<void> connect_main(const RdmaWishes& wishes) {
    asked_.pin_all = wishes.pin_all;
    asked_.large_requests = true;
    asked_.lanes =
        static_cast<std::uint8_t>(std::clamp<unsigned>(wishes.queue_pairs, 1, rdma::extra_lanes_max + 1) - 1);
    MD_TRY(auto link, fabric_.open(to_, stop_));
    MD_TRY(made_.main, RdmaControl::make(std::move(link), stop_, {}));
    MD_TRY(const rdma::Hello answered, establish(made_.main->link(), asked_, stop_, main_limit));
    settled_ = rdma::settle_hello(asked_, answered);
    made_.pin_all = settled_.pin_all;
    made_.large_requests = settled_.large_requests;
    if (asked_.pin_all && !settled_.pin_all)
      log::warning("RDMA: Server cannot support pinning all memory. Will register memory dynamically.");
    if (settled_.lanes < asked_.lanes) {
      log::warning(
          fmt::format("RDMA: the destination takes {} of {} queue pairs", settled_.lanes + 1, asked_.lanes + 1));
    }
    return {};
  }

  Result<void> connect_return_path() {
    MD_TRY(auto link, fabric_.open(to_, stop_));
    MD_TRY(made_.return_path, RdmaControl::make(std::move(link), stop_, {.unasked = unasked_on_return_path}));
    rdma::Hello hello;
    hello.pin_all = asked_.pin_all;
    MD_TRY([[maybe_unused]] const rdma::Hello answered,
           establish(made_.return_path->link(), hello, stop_, further_limit));
    return {};
  }

  Result<void> connect_lane(std::uint8_t number) {
    MD_TRY(auto link, fabric_.open(to_, stop_, made_.main->link().domain()));
    MD_TRY(auto lane, RdmaLane::make(std::move(link), stop_));
    rdma::Hello hello;
    hello.lane = number;
    hello.token = settled_.token;
    MD_TRY([[maybe_unused]] const rdma::Hello answered, establish(lane->link(), hello, stop_, further_limit));
    made_.lanes.push_back(std::move(lane));
    return {};
  }

  transports::RdmaFabric& fabric_;
  const transports::InetAddress& to_;
  StopSource& stop_;
  rdma::Hello asked_;
  rdma::Hello settled_;
  RdmaConnections made_;
};

// --- the destination --------------------------------------------------------------------------------------------

class RdmaDoor {
 public:
  RdmaDoor(transports::RdmaListener& listener, StopSource& stop) : listener_(listener), stop_(stop) {}

  Result<std::unique_ptr<RdmaChannel>> wait_for_source() {
    while (true) {
      MD_TRY(auto link, next_link());
      auto source = take_source(std::move(link));
      if (source && *source) return std::move(*source);
      if (!source) {
        if (source.error().is_cancelled()) return std::move(source).error();
        log::warning(fmt::format("incoming: an RDMA connection was dropped: {}", source.error().text()));
      }
      made_ = {};
      lanes_.clear();
    }
  }

 private:
  Result<std::unique_ptr<RdmaLink>> next_link() {
    while (true) {
      MD_TRY(auto link, listener_.accept_ready());
      if (link) return link;
      pollfd fds[] = {{listener_.fd(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}};
      if (::poll(fds, 2, -1) < 0 && errno != EINTR) return Error::from_errno("wait for a source");
      if (stop_.requested()) return cancelled_error();
    }
  }

  // One candidate, up to its first message.
  Result<std::unique_ptr<RdmaChannel>> take_source(std::unique_ptr<RdmaLink> link) {
    MD_TRY(const rdma::Hello hello, rdma::decode_hello(link->peer_private_data()));
    if (hello.lane != 0) return refuse(*link, "a further queue pair without a migration");
    auto answer = rdma::answer_hello(hello, token());
    if (!answer) {
      link->reject();
      return std::move(answer).error().with(link->describe());
    }
    granted_ = *answer;
    MD_TRY(made_.main, RdmaControl::make(std::move(link), stop_, {}));
    MD_CHECK(made_.main->link().establish(rdma::encode_hello(granted_), stop_, further_limit));
    made_.pin_all = granted_.pin_all;
    lanes_.resize(granted_.lanes);
    MD_CHECK(await_first_message());
    for (auto& lane : lanes_) {
      if (!lane) return wire_error("RDMA: queue pairs that were granted are missing");
      made_.lanes.push_back(std::move(lane));
    }
    return RdmaChannel::make(RdmaSide::destination, std::move(made_));
  }

  Error refuse(RdmaLink& link, std::string_view why) {
    link.reject();
    return wire_error(fmt::format("{}: {}", link.describe(), why));
  }

  std::uint64_t token() { return (std::uint64_t{random_()} << 32) | random_(); }

  // Its other connections come before it.
  Result<void> await_first_message() {
    const auto deadline = SteadyClock::now() + limits::header_wait;
    MD_CHECK(made_.main->ask_for_message());
    while (true) {
      MD_CHECK(made_.main->pump());
      if (made_.main->has_message()) return {};
      MD_TRY(const bool more, take_further());
      if (more) continue;
      // Arms the link's events.
      MD_TRY(const transports::RdmaWake wake, made_.main->link().wait(stop_, milliseconds(0)));
      if (wake == transports::RdmaWake::ready) continue;
      if (wake == transports::RdmaWake::disconnected) return wire_error("RDMA: the source disconnected without a word");
      const auto left = std::chrono::duration_cast<milliseconds>(deadline - SteadyClock::now()).count();
      if (left <= 0) return wire_error("RDMA: the source sent nothing in time");
      pollfd fds[] = {{listener_.fd(), POLLIN, 0}, {stop_.fd(), POLLIN, 0}, {made_.main->link().event_fd(), POLLIN, 0}};
      if (::poll(fds, 3, static_cast<int>(left)) < 0 && errno != EINTR) return Error::from_errno("wait for a source");
      if (stop_.requested()) return cancelled_error();
    }
  }

  // False: nobody was there.
  Result<bool> take_further() {
    MD_TRY(auto link, listener_.accept_ready(made_.main->link().domain()));
    if (!link) return false;
    auto taken = sort(std::move(link));
    if (!taken && taken.error().is_cancelled()) return std::move(taken).error();
    if (!taken) log::warning(fmt::format("incoming: an RDMA connection was refused: {}", taken.error().text()));
    return true;
  }

  Result<void> sort(std::unique_ptr<RdmaLink> link) {
    MD_TRY(const rdma::Hello hello, rdma::decode_hello(link->peer_private_data()));
    if (hello.version != rdma::hello_version) return refuse(*link, "a private version");
    rdma::Hello answer;
    answer.pin_all = hello.pin_all;
    if (hello.lane == 0) {
      if (made_.return_path) return refuse(*link, "a second return path");
      MD_TRY(auto control, RdmaControl::make(std::move(link), stop_, {}));
      MD_CHECK(control->link().establish(rdma::encode_hello(answer), stop_, further_limit));
      made_.return_path = std::move(control);
      return {};
    }
    if (hello.lane > lanes_.size() || hello.token != granted_.token)
      return refuse(*link, "a queue pair nobody granted");
    auto& place = lanes_[hello.lane - 1u];
    if (place) return refuse(*link, "a queue pair that is there already");
    MD_TRY(auto lane, RdmaLane::make(std::move(link), stop_));
    MD_CHECK(lane->link().establish(rdma::encode_hello(answer), stop_, further_limit));
    place = std::move(lane);
    return {};
  }

  transports::RdmaListener& listener_;
  StopSource& stop_;
  std::random_device random_;
  rdma::Hello granted_;
  RdmaConnections made_;
  std::vector<std::unique_ptr<RdmaLane>> lanes_;
};

}  // namespace

Result<std::unique_ptr<RdmaChannel>> connect_rdma(transports::RdmaFabric& fabric, const transports::InetAddress& to,
                                                  const RdmaWishes& wishes, StopSource& stop) {
  return Connecting(fabric, to, stop).run(wishes);
}

Result<std::unique_ptr<RdmaChannel>> accept_rdma(transports::RdmaListener& listener, StopSource& stop) {
  return RdmaDoor(listener, stop).wait_for_source();
}

}  // namespace migrationd::migration
