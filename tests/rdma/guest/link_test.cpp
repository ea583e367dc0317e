// SPDX-License-Identifier: Apache-2.0
//
// link-test NAME: one promise of transports/rdma_link.hpp on real verbs, for the guest of tests/rdma/run. Both ends of
// each connection are in this process, at the addresses of the guest's device. `link-test --list` names the tests.
//
// Waits have a bound of 20 s, against hangs only.
#include "transports/rdma_link.hpp"

#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <optional>
#include <thread>

namespace {

using namespace migrationd;
using namespace migrationd::transports;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using namespace std::chrono_literals;

constexpr auto bound = 20s;

[[noreturn]] void fail(const std::string& text) {
  std::fprintf(stderr, "%s\n", text.c_str());
  std::exit(1);
}

void check(bool condition, const std::string& what) {
  if (!condition) fail(what);
}

template <class T>
T must(Result<T> result, const char* what) {
  if (!result.has_value()) fail(fmt::format("{}: {}", what, result.error().text()));
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

template <class T>
std::string error_of(const Result<T>& result, const char* what) {
  if (result.has_value()) fail(fmt::format("{} worked", what));
  return result.error().text();
}

void contains(const std::string& text, std::string_view part) {
  check(text.find(part) != std::string::npos, fmt::format("no '{}' in '{}'", part, text));
}

// Memory with a pattern, registered.
struct Area {
  std::vector<std::byte> bytes;
  std::unique_ptr<RdmaRegion> region;

  RdmaLocal part(std::size_t offset, std::size_t length) {
    return {bytes.data() + offset, static_cast<std::uint32_t>(length), region->local_key()};
  }
  RdmaRemote remote(std::size_t offset) {
    return {reinterpret_cast<std::uintptr_t>(bytes.data() + offset), region->remote_key()};
  }
};

Area area(const RdmaLink& link, std::size_t size, RdmaAccess access, unsigned seed) {
  Area out;
  out.bytes.resize(size);
  for (std::size_t i = 0; i < size; ++i) out.bytes[i] = static_cast<std::byte>((i * 31 + (i >> 12) + seed) & 0xff);
  out.region = must(link.domain()->register_memory(out.bytes, access), "register");
  return out;
}

std::string host = "192.168.77.1";

struct Ends {
  std::unique_ptr<StopSource> stop = must(StopSource::make(), "stop");
  std::unique_ptr<RdmaFabric> fabric = must(make_rdma_fabric(), "fabric");
  std::unique_ptr<RdmaListener> listener = must(fabric->listen({.host = host, .port = "0"}), "listen");

  InetAddress place() const { return listener->bound_address(); }

  std::unique_ptr<RdmaLink> request(std::shared_ptr<RdmaDomain> domain = nullptr) {
    const auto deadline = steady_clock::now() + bound;
    while (steady_clock::now() < deadline) {
      pollfd polled{listener->fd(), POLLIN, 0};
      ::poll(&polled, 1, 1000);
      auto link = must(listener->accept_ready(domain), "accept_ready");
      if (link != nullptr) return link;
    }
    fail("no request came");
  }
};

ByteView text(std::string_view words) { return as_bytes(words); }

// Two links that are connected.
struct Pair {
  std::unique_ptr<RdmaLink> one;  // connected
  std::unique_ptr<RdmaLink> two;  // accepted

  explicit Pair(Ends& ends, std::shared_ptr<RdmaDomain> first = nullptr, std::shared_ptr<RdmaDomain> second = nullptr) {
    one = must(ends.fabric->open(ends.place(), *ends.stop, std::move(first)), "open");
    join(
        ends, [](RdmaLink&) {}, std::move(second));
  }
  Pair(Ends& ends, const std::function<void(RdmaLink&)>& before_accept) {
    one = must(ends.fabric->open(ends.place(), *ends.stop), "open");
    join(ends, before_accept, nullptr);
  }

 private:
  void join(Ends& ends, const std::function<void(RdmaLink&)>& before_accept, std::shared_ptr<RdmaDomain> second) {
    std::thread connecting([&] { must(one->establish(text("from one"), *ends.stop, bound), "establish one"); });
    two = ends.request(std::move(second));
    before_accept(*two);
    must(two->establish(text("from two"), *ends.stop, bound), "establish two");
    connecting.join();
  }
};

// The next completions, at least one.
std::vector<RdmaCompletion> next(RdmaLink& link, StopSource& stop) {
  const RdmaWake wake = must(link.wait(stop, bound), "wait");
  check(wake == RdmaWake::ready, fmt::format("wait: {}", wake == RdmaWake::timed_out ? "timed out" : "disconnected"));
  std::vector<RdmaCompletion> out(64);
  const auto found = must(link.poll(out), "poll");
  out.resize(found.size());
  return out;
}

std::string failure_of(RdmaLink& link, StopSource& stop) {
  const auto deadline = steady_clock::now() + bound;
  while (steady_clock::now() < deadline) {
    must(link.wait(stop, 1000ms), "wait");
    std::array<RdmaCompletion, 8> out;
    const auto found = link.poll(out);
    if (!found.has_value()) return found.error().text();
  }
  fail("nothing failed");
}

void until_gone(RdmaLink& link, StopSource& stop) {
  const auto deadline = steady_clock::now() + bound;
  std::array<RdmaCompletion, 8> out;
  while (steady_clock::now() < deadline) {
    const RdmaWake wake = must(link.wait(stop, 1000ms), "wait");
    if (wake == RdmaWake::disconnected) return;
    if (wake == RdmaWake::ready && !link.poll(out).has_value()) return;
  }
  fail("the disconnection was not seen");
}

// --- the tests ---------------------------------------------------------------------------------------------------

void private_data() {
  Ends ends;
  Pair pair(ends);
  const auto two = pair.two->peer_private_data();
  const auto one = pair.one->peer_private_data();
  check(two.size() == rdma_private_bytes && one.size() == rdma_private_bytes, "sizes of private data");
  check(as_text(two.first(8)) == "from one" && two[8] == std::byte{0}, "what the accepting side got");
  check(as_text(one.first(8)) == "from two" && one[8] == std::byte{0}, "what the connecting side got");
  contains(pair.two->describe(), "rdma:" + std::string(host.find(':') == std::string::npos ? host : "[" + host + "]"));
}

void ipv6() {
  host = "fd77::1";
  private_data();
}

void messages_in_order() {
  Ends ends;
  std::optional<Area> into;
  Pair pair(ends, [&](RdmaLink& two) {
    into = area(two, 4 * 4096, RdmaAccess::write_local, 1);
    for (std::size_t i = 0; i < 4; ++i) must(two.post_receive(into->part(i * 4096, 4096), 100 + i), "post_receive");
  });
  Area from = area(*pair.one, 4 * 4096, RdmaAccess::read_local, 2);
  for (std::size_t i = 0; i < 4; ++i) must(pair.one->post_send(from.part(i * 4096, 100 + i), i), "post_send");
  std::vector<RdmaCompletion> got;
  while (got.size() < 4) {
    for (const RdmaCompletion& one : next(*pair.two, *ends.stop)) got.push_back(one);
  }
  for (std::size_t i = 0; i < 4; ++i) {
    check(got[i].request == RdmaRequest::receive && got[i].id == 100 + i && got[i].length == 100 + i, "a receive");
    check(std::memcmp(into->bytes.data() + i * 4096, from.bytes.data() + i * 4096, 100 + i) == 0, "its bytes");
  }
  std::size_t sent = 0;
  while (sent < 4) {
    for (const RdmaCompletion& one : next(*pair.one, *ends.stop)) {
      check(one.request == RdmaRequest::send && one.id == sent, "a send's completion");
      ++sent;
    }
  }
  check(pair.one->counters().sends == 4 && pair.two->counters().receives == 4, "counters of messages");
  check(pair.two->counters().received_bytes == 100 + 101 + 102 + 103, "counter of received bytes");
}

// More writes than the queue holds, one in 16 signalled; all memory arrives.
void writes() {
  constexpr std::size_t piece = 4096;
  constexpr std::size_t pieces = 2048;
  Ends ends;
  Pair pair(ends);
  Area from = area(*pair.one, piece * pieces, RdmaAccess::read_local, 3);
  Area to = area(*pair.two, piece * pieces, RdmaAccess::write_remote, 4);
  std::size_t completions = 0;
  std::uint64_t last = 0;
  for (std::size_t i = 0; i < pieces; ++i) {
    const bool signalled = i % 16 == 15;
    while (!must(pair.one->post_write(from.part(i * piece, piece), to.remote(i * piece), i, signalled), "post_write")) {
      for (const RdmaCompletion& one : next(*pair.one, *ends.stop)) {
        check(one.request == RdmaRequest::write && one.id % 16 == 15 && one.id >= last, "a write's completion");
        last = one.id;
        ++completions;
      }
    }
  }
  while (completions < pieces / 16) completions += next(*pair.one, *ends.stop).size();
  check(from.bytes == to.bytes, "the memory differs");
  check(pair.one->counters().writes == pieces && pair.one->counters().written_bytes == piece * pieces, "counters");
  check(pair.two->counters().receives == 0 && pair.two->counters().completions == 0,
        "the other side had no part in it");
}

// Without completions nobody knows that there is room again.
void full_queue() {
  Ends ends;
  Pair pair(ends);
  Area from = area(*pair.one, 4096, RdmaAccess::read_local, 3);
  Area to = area(*pair.two, 4096, RdmaAccess::write_remote, 4);
  for (std::size_t i = 0; i < rdma_send_depth; ++i)
    check(must(pair.one->post_write(from.part(0, 8), to.remote(0), i, false), "post_write"), "room");
  check(!must(pair.one->post_write(from.part(0, 8), to.remote(0), 1, true), "post_write"), "the queue has no end");
  // A message still finds its place.
  must(pair.one->post_send(from.part(0, 8), 1), "post_send");
}

void wrong_key() {
  Ends ends;
  Pair pair(ends);
  Area from = area(*pair.one, 4096, RdmaAccess::read_local, 5);
  Area to = area(*pair.two, 4096, RdmaAccess::write_remote, 6);
  RdmaRemote wrong = to.remote(0);
  wrong.key ^= 0x5500;
  must(pair.one->post_write(from.part(0, 4096), wrong, 1, false), "post_write");
  contains(failure_of(*pair.one, *ends.stop), "remote access error");
  contains(failure_of(*pair.one, *ends.stop), "remote access error");
  check(to.bytes != from.bytes, "memory was written");
}

void beyond_region() {
  Ends ends;
  Pair pair(ends);
  Area from = area(*pair.one, 8192, RdmaAccess::read_local, 5);
  Area to = area(*pair.two, 4096, RdmaAccess::write_remote, 6);
  must(pair.one->post_write(from.part(0, 8192), to.remote(0), 1, true), "post_write");
  contains(failure_of(*pair.one, *ends.stop), "remote access error");
}

void no_receive_posted() {
  Ends ends;
  Pair pair(ends);
  Area from = area(*pair.one, 4096, RdmaAccess::read_local, 7);
  must(pair.one->post_send(from.part(0, 16), 1), "post_send");
  contains(failure_of(*pair.one, *ends.stop), "the peer had posted no receive");
}

void message_too_long() {
  Ends ends;
  std::optional<Area> into;
  Pair pair(ends, [&](RdmaLink& two) {
    into = area(two, 4096, RdmaAccess::write_local, 1);
    must(two.post_receive(into->part(0, 64), 1), "post_receive");
  });
  Area from = area(*pair.one, 4096, RdmaAccess::read_local, 7);
  must(pair.one->post_send(from.part(0, 65), 1), "post_send");
  contains(failure_of(*pair.two, *ends.stop), "RDMA ERROR");
  contains(failure_of(*pair.one, *ends.stop), "RDMA ERROR");
}

void empty_write() {
  Ends ends;
  Pair pair(ends);
  check(must(pair.one->post_write({}, {}, 7, true), "post_write"), "no room");
  const auto done = next(*pair.one, *ends.stop);
  check(done.size() == 1 && done[0].id == 7 && done[0].request == RdmaRequest::write, "its completion");
  check(must(pair.two->post_write({}, {}, 8, true), "post_write"), "no room");
  check(next(*pair.two, *ends.stop).at(0).id == 8, "its completion at the accepting side");
}

// What was said before a disconnection is heard.
void last_words() {
  Ends ends;
  std::optional<Area> into;
  Pair pair(ends, [&](RdmaLink& two) {
    into = area(two, 8192, RdmaAccess::write_local, 1);
    must(two.post_receive(into->part(0, 4096), 1), "post_receive");
    must(two.post_receive(into->part(4096, 4096), 2), "post_receive");
  });
  Area from = area(*pair.one, 4096, RdmaAccess::read_local, 7);
  must(pair.one->post_send(from.part(0, 16), 1), "post_send");
  check(next(*pair.one, *ends.stop).at(0).id == 1, "the send's completion");
  const auto before = steady_clock::now();
  pair.one.reset();
  check(steady_clock::now() - before < 10s, "leaving took long");
  const auto got = next(*pair.two, *ends.stop);
  check(got.size() == 1 && got[0].id == 1 && got[0].length == 16, "the last message");
  check(must(pair.two->wait(*ends.stop, bound), "wait") == RdmaWake::disconnected, "disconnected");
  std::array<RdmaCompletion, 4> out;
  check(must(pair.two->poll(out), "poll").empty(), "flushed receives are not handed out");
}

void disconnect_ends_own_wait() {
  Ends ends;
  Pair pair(ends);
  std::thread other([&] {
    std::this_thread::sleep_for(200ms);
    pair.one->disconnect();
  });
  check(must(pair.one->wait(*ends.stop, bound), "wait") == RdmaWake::disconnected, "our own wait");
  other.join();
  until_gone(*pair.two, *ends.stop);
}

void stop_ends_waits() {
  Ends ends;
  Pair pair(ends);
  check(must(pair.one->wait(*ends.stop, 50ms), "wait") == RdmaWake::timed_out, "a wait with a limit");
  check(must(pair.one->wait(*ends.stop, 0ms), "wait") == RdmaWake::timed_out, "a wait of no time");
  std::thread other([&] {
    std::this_thread::sleep_for(200ms);
    ends.stop->request();
  });
  const auto waited = pair.one->wait(*ends.stop, -1ms);
  check(!waited.has_value() && waited.error().is_cancelled(), "the stop ends a wait");
  other.join();
}

void events_by_descriptor() {
  Ends ends;
  std::optional<Area> into;
  Pair pair(ends, [&](RdmaLink& two) {
    into = area(two, 4096, RdmaAccess::write_local, 1);
    must(two.post_receive(into->part(0, 4096), 1), "post_receive");
  });
  std::array<RdmaCompletion, 4> out;
  check(must(pair.two->wait(*ends.stop, 0ms), "wait") == RdmaWake::timed_out, "nothing is there");
  pollfd polled{pair.two->event_fd(), POLLIN, 0};
  check(::poll(&polled, 1, 0) == 0, "the descriptor tells of nothing");
  Area from = area(*pair.one, 4096, RdmaAccess::read_local, 7);
  must(pair.one->post_send(from.part(0, 16), 1), "post_send");
  check(::poll(&polled, 1, 20000) == 1, "the descriptor tells of a message");
  check(must(pair.two->poll(out), "poll").size() == 1, "the message");
  check(must(pair.two->wait(*ends.stop, 0ms), "wait") == RdmaWake::timed_out, "nothing is left");
  pair.one->disconnect();
  check(::poll(&polled, 1, 20000) == 1, "the descriptor tells of the end");
  until_gone(*pair.two, *ends.stop);
}

void rejected() {
  Ends ends;
  auto one = must(ends.fabric->open(ends.place(), *ends.stop), "open");
  std::string text_of_error;
  std::thread connecting([&] {
    const auto answer = one->establish(text("x"), *ends.stop, bound);
    text_of_error = error_of(answer, "connecting");
  });
  auto two = ends.request();
  two->reject();
  connecting.join();
  contains(text_of_error, "RDMA ERROR: connecting to destination!");
  contains(text_of_error, "rejected");
}

void dropped_request() {
  Ends ends;
  auto one = must(ends.fabric->open(ends.place(), *ends.stop), "open");
  std::string text_of_error;
  std::thread connecting([&] { text_of_error = error_of(one->establish(text("x"), *ends.stop, bound), "connecting"); });
  ends.request().reset();
  connecting.join();
  contains(text_of_error, "RDMA ERROR: connecting to destination!");
}

void nobody_listens() {
  Ends ends;
  InetAddress nowhere = ends.place();
  ends.listener.reset();
  auto one = must(ends.fabric->open(nowhere, *ends.stop), "open");
  contains(error_of(one->establish(text("x"), *ends.stop, bound), "connecting"),
           "RDMA ERROR: connecting to destination!");
}

void no_answer_in_time() {
  Ends ends;
  auto one = must(ends.fabric->open(ends.place(), *ends.stop), "open");
  const auto answer = one->establish(text("x"), *ends.stop, 300ms);
  contains(error_of(answer, "connecting"), "RDMA ERROR: poll cm event timeout");
  check(answer.error().kind() == ErrorKind::peer, "kind of the error");
}

void no_address() {
  Ends ends;
  contains(error_of(ends.fabric->open({.host = "203.0.113.9", .port = "4444"}, *ends.stop), "open"),
           "RDMA ERROR: could not resolve address 203.0.113.9");
  contains(error_of(ends.fabric->listen({.host = "203.0.113.9", .port = "4444"}), "listen"),
           "RDMA ERROR: Error: could not rdma_bind_addr!");
  contains(error_of(ends.fabric->open({.host = "no.such.host.invalid", .port = "4444"}, *ends.stop), "open"),
           "address resolution failed");
}

void shared_domain() {
  Ends ends;
  Pair first(ends);
  Area from = area(*first.one, 8192, RdmaAccess::read_local, 8);
  Area to = area(*first.two, 8192, RdmaAccess::write_remote, 9);
  Pair second(ends, first.one->domain(), first.two->domain());
  check(second.one->domain() == first.one->domain(), "one domain");
  check(second.one->counters().registrations == 1, "a later link knows of earlier registrations");
  check(must(first.one->post_write(from.part(0, 4096), to.remote(0), 1, true), "write"), "room");
  check(next(*first.one, *ends.stop).at(0).id == 1, "first");
  // The first link may go; its registrations stay.
  first.one.reset();
  first.two.reset();
  check(must(second.one->post_write(from.part(4096, 4096), to.remote(4096), 2, true), "write"), "room");
  check(next(*second.one, *ends.stop).at(0).id == 2, "second");
  check(from.bytes == to.bytes, "memory by both links");
  from.region.reset();
  check(second.one->counters().deregistrations == 1, "a deregistration is counted");
}

// Regions and domains may be the last to go.
void region_outlives_links() {
  Area left;
  {
    Ends ends;
    Pair pair(ends);
    left = area(*pair.one, 4096, RdmaAccess::read_local, 8);
  }
  check(left.region->local_key() != 0 || left.region->remote_key() != 0, "keys");
}

// The caller ends the device; tests/rdma/guest/cases.sh.
void device_removed() {
  Ends ends;
  Pair pair(ends);
  std::puts("connected");
  std::fflush(stdout);
  until_gone(*pair.one, *ends.stop);
  until_gone(*pair.two, *ends.stop);
  std::puts("seen");
}

const std::map<std::string_view, void (*)()> tests = {
    {"private-data", private_data},
    {"ipv6", ipv6},
    {"messages-in-order", messages_in_order},
    {"writes", writes},
    {"full-queue", full_queue},
    {"wrong-key", wrong_key},
    {"beyond-region", beyond_region},
    {"no-receive-posted", no_receive_posted},
    {"message-too-long", message_too_long},
    {"empty-write", empty_write},
    {"last-words", last_words},
    {"disconnect-ends-own-wait", disconnect_ends_own_wait},
    {"stop-ends-waits", stop_ends_waits},
    {"events-by-descriptor", events_by_descriptor},
    {"rejected", rejected},
    {"dropped-request", dropped_request},
    {"nobody-listens", nobody_listens},
    {"no-answer-in-time", no_answer_in_time},
    {"no-address", no_address},
    {"shared-domain", shared_domain},
    {"region-outlives-links", region_outlives_links},
    {"device-removed", device_removed},
};

}  // namespace

int main(int count, char** words) {
  if (count == 2 && std::string_view(words[1]) == "--list") {
    for (const auto& [name, function] : tests) std::printf("%.*s\n", static_cast<int>(name.size()), name.data());
    return 0;
  }
  const auto test = count == 2 ? tests.find(words[1]) : tests.end();
  if (test == tests.end()) fail("usage: link-test NAME|--list");
  test->second();
  return 0;
}
