// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/rdma_memory_fabric.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <utility>

namespace migrationd::testing {

using transports::InetAddress;
using transports::RdmaAccess;
using transports::RdmaCompletion;
using transports::RdmaCounters;
using transports::RdmaDomain;
using transports::RdmaLink;
using transports::RdmaListener;
using transports::RdmaLocal;
using transports::RdmaRegion;
using transports::RdmaRemote;
using transports::RdmaRequest;
using transports::RdmaWake;

namespace {

// An adapter reads guest memory while the guest writes it; ThreadSanitizer need not know.
__attribute__((no_sanitize("thread"))) void copy_like_an_adapter(std::byte* to, const std::byte* from,
                                                                 std::size_t count) {
  using Word = volatile std::uint64_t;
  std::size_t at = 0;
  if (reinterpret_cast<std::uintptr_t>(to) % 8 == 0 && reinterpret_cast<std::uintptr_t>(from) % 8 == 0) {
    auto* const out = static_cast<Word*>(static_cast<void*>(to));
    const auto* const in = static_cast<const Word*>(static_cast<const void*>(from));
    for (; at + 8 <= count; at += 8) out[at / 8] = in[at / 8];
  }
  for (; at < count; ++at) const_cast<volatile std::byte*>(to)[at] = const_cast<const volatile std::byte*>(from)[at];
}

}  // namespace

class Event {
 public:
  Event() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  int fd() const noexcept { return fd_.get(); }
  void set() noexcept { [[maybe_unused]] const int done = ::eventfd_write(fd_.get(), 1); }
  void clear() noexcept {
    eventfd_t count = 0;
    [[maybe_unused]] const int done = ::eventfd_read(fd_.get(), &count);
  }

 private:
  UniqueFd fd_;
};

struct Region {
  std::byte* address = nullptr;
  std::size_t length = 0;
  RdmaAccess access = RdmaAccess::read_local;
};

// One end of a connection.
struct End {
  std::shared_ptr<RdmaDomain> domain;
  std::deque<std::pair<RdmaLocal, std::uint64_t>> receives;
  std::deque<RdmaCompletion> completions;
  std::deque<std::uint64_t> counts;  // of the completions: requests that each stands for
  Bytes peer_said;
  Event event;
  RdmaCounters counters;
  std::uint64_t unknown = 0;  // requests not known to be complete
  std::uint64_t since_signal = 0;
  std::optional<Error> failure;
};

struct Pair {
  std::array<End, 2> ends;
  bool established = false;
  bool rejected = false;
  bool disconnected = false;

  void disconnect() noexcept {
    disconnected = true;
    for (End& end : ends) {
      end.receives.clear();
      end.event.set();
    }
  }
};

struct Door {
  Event event;
  std::deque<std::shared_ptr<Pair>> waiting;
  bool open = true;
};

struct MemoryFabric::State {
  mutable std::mutex mutex;
  Options options;
  std::map<std::string, std::shared_ptr<Door>> doors;
  std::uint32_t next_key = 1000;
  std::uint64_t steps = 0;
  std::uint64_t failing = 0;
  bool cut = false;
  Bytes said_instead;
  int next_port = 40000;

  // Counts an operation; false: it is the one that fails.
  bool step() {
    ++steps;
    return !cut && steps != failing;
  }
};

namespace {

using State = MemoryFabric::State;

class MemoryDomain;

class MemoryRegion final : public RdmaRegion {
 public:
  MemoryRegion(std::shared_ptr<MemoryDomain> domain, std::uint32_t key) : domain_(std::move(domain)), key_(key) {}
  ~MemoryRegion() override;
  std::uint32_t local_key() const noexcept override { return key_; }
  std::uint32_t remote_key() const noexcept override { return key_ + 1; }

 private:
  std::shared_ptr<MemoryDomain> domain_;
  std::uint32_t key_;
};

class MemoryDomain final : public RdmaDomain, public std::enable_shared_from_this<MemoryDomain> {
 public:
  explicit MemoryDomain(std::shared_ptr<State> state) : state_(std::move(state)) {}

  Result<std::unique_ptr<RdmaRegion>> register_memory(std::span<std::byte> memory, RdmaAccess access) override {
    const std::lock_guard lock(state_->mutex);
    if (!state_->step()) return Error::from_errno(fmt::format("register {} bytes of memory", memory.size()), ENOMEM);
    const std::uint32_t key = state_->next_key;
    state_->next_key += 2;
    regions[key] = {memory.data(), memory.size(), access};
    ++registrations;
    bytes += memory.size();
    return std::unique_ptr<RdmaRegion>(std::make_unique<MemoryRegion>(shared_from_this(), key));
  }
  void drop(std::uint32_t key) {
    const std::lock_guard lock(state_->mutex);
    regions.erase(key);
    ++deregistrations;
  }
  // Under the fabric's lock.
  bool covers_local(const RdmaLocal& local) const {
    const auto found = regions.find(local.key);
    return found != regions.end() && local.address >= found->second.address &&
           local.address + local.length <= found->second.address + found->second.length;
  }
  bool covers_remote(const RdmaRemote& remote, std::size_t length) const {
    const auto found = regions.find(remote.key - 1);
    if (found == regions.end() || found->second.access != RdmaAccess::write_remote) return false;
    const auto start = reinterpret_cast<std::uint64_t>(found->second.address);
    return remote.address >= start && length <= found->second.length &&
           remote.address - start <= found->second.length - length;
  }

  std::map<std::uint32_t, Region> regions;
  std::uint64_t registrations = 0;
  std::uint64_t deregistrations = 0;
  std::uint64_t bytes = 0;

 private:
  std::shared_ptr<State> state_;
};

MemoryRegion::~MemoryRegion() { domain_->drop(key_); }

MemoryDomain& domain_of(const End& end) { return static_cast<MemoryDomain&>(*end.domain); }

class MemoryLink final : public RdmaLink {
 public:
  MemoryLink(std::shared_ptr<State> state, std::shared_ptr<Pair> pair, int side, std::string name,
             std::shared_ptr<Door> door = nullptr)
      : state_(std::move(state)), pair_(std::move(pair)), side_(side), name_(std::move(name)), door_(std::move(door)) {}

  ~MemoryLink() override {
    if (side_ == 1 && !pair_->established) reject();
    disconnect();
  }

  std::shared_ptr<RdmaDomain> domain() const override { return ours().domain; }

  Result<void> establish(ByteView said, StopSource& stop, std::chrono::milliseconds limit) override {
    {
      const std::lock_guard lock(state_->mutex);
      if (!state_->step()) return refuse("RDMA ERROR: connecting to destination!");
      Bytes padded(said.begin(), said.end());
      if (side_ == 0 && !state_->said_instead.empty()) padded = state_->said_instead;
      padded.resize(transports::rdma_private_bytes);
      theirs().peer_said = std::move(padded);
      if (side_ == 1) {
        if (pair_->disconnected) return refuse("RDMA ERROR: rdma_accept");
        pair_->established = true;
        theirs().event.set();
        return {};
      }
      if (!door_ || !door_->open) return refuse("RDMA ERROR: connecting to destination!");
      door_->waiting.push_back(pair_);
      door_->event.set();
    }
    return await_acceptance(stop, limit);
  }

  void reject() noexcept override {
    const std::lock_guard lock(state_->mutex);
    pair_->rejected = true;
    pair_->disconnect();
  }

  ByteView peer_private_data() const noexcept override { return ours().peer_said; }

  Result<void> post_receive(RdmaLocal into, std::uint64_t id) override {
    const std::lock_guard lock(state_->mutex);
    MD_CHECK(check_step());
    if (!domain_of(ours()).covers_local(into)) return fail("local protection error");
    if (ours().receives.size() == transports::rdma_receive_depth) return fail("too many receives");
    if (!pair_->disconnected) ours().receives.emplace_back(into, id);
    return {};
  }

  Result<void> post_send(RdmaLocal from, std::uint64_t id) override {
    const std::lock_guard lock(state_->mutex);
    MD_CHECK(check_step());
    if (!domain_of(ours()).covers_local(from)) return fail("local protection error");
    if (pair_->disconnected) return {};
    ++ours().counters.sends;
    ours().counters.sent_bytes += from.length;
    End& to = theirs();
    if (to.receives.empty()) {
      ours().failure = Error(ErrorKind::io, "RNR retry counter exceeded");
      pair_->disconnect();
      return {};
    }
    const auto [into, slot] = to.receives.front();
    to.receives.pop_front();
    if (into.length < from.length) return fail("remote invalid request error");
    std::memcpy(into.address, from.address, from.length);
    age(into.address, from.length);
    to.completions.push_back({RdmaRequest::receive, slot, from.length});
    to.counts.push_back(0);
    ++to.counters.receives;
    to.counters.received_bytes += from.length;
    to.event.set();
    complete({RdmaRequest::send, id, 0});
    return {};
  }

  Result<bool> post_write(RdmaLocal from, RdmaRemote to, std::uint64_t id, bool signalled) override {
    const std::lock_guard lock(state_->mutex);
    MD_CHECK(check_step());
    if (ours().unknown + ours().since_signal >= state_->options.send_depth) return false;
    if (pair_->disconnected) return true;
    if (from.length != 0) {
      if (!domain_of(ours()).covers_local(from)) return fail("local protection error");
      if (!domain_of(theirs()).covers_remote(to, from.length)) return fail("remote access error");
      copy_like_an_adapter(reinterpret_cast<std::byte*>(to.address), from.address, from.length);
    }
    ++ours().counters.writes;
    ours().counters.written_bytes += from.length;
    if (signalled) {
      complete({RdmaRequest::write, id, 0});
    } else {
      ++ours().since_signal;
    }
    return true;
  }

  Result<std::span<RdmaCompletion>> poll(std::span<RdmaCompletion> out) override {
    const std::lock_guard lock(state_->mutex);
    End& end = ours();
    ++end.counters.polls;
    end.event.clear();
    std::size_t count = 0;
    while (count < out.size() && !end.completions.empty()) {
      out[count++] = end.completions.front();
      end.completions.pop_front();
      end.unknown -= end.counts.front();
      end.counts.pop_front();
    }
    end.counters.completions += count;
    if (!end.completions.empty() || pair_->disconnected) end.event.set();
    if (count == 0 && end.failure) return *end.failure;
    return out.first(count);
  }

  Result<RdmaWake> wait(StopSource& stop, std::chrono::milliseconds limit) override {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (true) {
      {
        const std::lock_guard lock(state_->mutex);
        if (stop.requested()) return cancelled_error();
        if (!ours().completions.empty() || ours().failure) return RdmaWake::ready;
        if (pair_->disconnected) return RdmaWake::disconnected;
      }
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
      if (limit.count() >= 0 && left <= 0) return RdmaWake::timed_out;
      sleep(stop, limit.count() < 0 ? -1 : static_cast<int>(left));
    }
  }

  int event_fd() const noexcept override { return ours().event.fd(); }

  void disconnect() noexcept override {
    const std::lock_guard lock(state_->mutex);
    pair_->disconnect();
  }

  const RdmaCounters& counters() const noexcept override {
    const auto& domain = domain_of(ours());
    RdmaCounters& counters = pair_->ends[static_cast<std::size_t>(side_)].counters;
    const std::lock_guard lock(state_->mutex);
    counters.registrations = domain.registrations;
    counters.deregistrations = domain.deregistrations;
    counters.registered_bytes = domain.bytes;
    return counters;
  }
  std::string describe() const override { return name_; }

 private:
  End& ours() const noexcept { return pair_->ends[static_cast<std::size_t>(side_)]; }
  End& theirs() const noexcept { return pair_->ends[static_cast<std::size_t>(1 - side_)]; }

  // Under the lock from here on, but for the two that wait.
  Error refuse(const char* text) {
    pair_->disconnect();
    return Error(ErrorKind::io, text);
  }
  Result<void> check_step() {
    if (state_->step()) return {};
    ours().failure = Error(ErrorKind::io, "injected fault");
    pair_->disconnect();
    return *ours().failure;
  }
  Error fail(const char* text) {
    ours().failure = Error(ErrorKind::io, text);
    pair_->disconnect();
    return *ours().failure;
  }
  void age(std::byte* message, std::size_t length) const {
    constexpr std::size_t header = 16, type_at = 7, count_at = 11;
    const bool old = side_ == 0 ? state_->options.old_source : state_->options.old_destination;
    if (old && length > header && message[type_at] == std::byte{3}) message[count_at] = std::byte{1};
  }
  void complete(RdmaCompletion completion) {
    End& end = ours();
    end.completions.push_back(completion);
    end.counts.push_back(end.since_signal + 1);
    end.unknown += end.since_signal + 1;
    end.since_signal = 0;
    end.event.set();
  }

  void sleep(StopSource& stop, int timeout) const {
    pollfd fds[] = {{ours().event.fd(), POLLIN, 0}, {stop.fd(), POLLIN, 0}};
    ::poll(fds, 2, timeout);
  }
  Result<void> await_acceptance(StopSource& stop, std::chrono::milliseconds limit) {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (true) {
      {
        const std::lock_guard lock(state_->mutex);
        ours().event.clear();
        if (pair_->established) return {};
        if (pair_->disconnected) return Error(ErrorKind::io, "RDMA ERROR: connecting to destination!");
        if (stop.requested()) return cancelled_error();
      }
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
      if (left <= 0) return Error(ErrorKind::peer, "RDMA ERROR: poll cm event timeout");
      sleep(stop, static_cast<int>(std::min<std::int64_t>(left, 60000)));
    }
  }

  std::shared_ptr<State> state_;
  std::shared_ptr<Pair> pair_;
  const int side_;  // 0 connected, 1 accepted
  const std::string name_;
  std::shared_ptr<Door> door_;
};

class MemoryListener final : public RdmaListener {
 public:
  MemoryListener(std::shared_ptr<State> state, std::shared_ptr<Door> door, InetAddress at)
      : state_(std::move(state)), door_(std::move(door)), at_(std::move(at)) {}
  ~MemoryListener() override {
    const std::lock_guard lock(state_->mutex);
    door_->open = false;
    for (const auto& pair : door_->waiting) pair->disconnect();
  }

  int fd() const noexcept override { return door_->event.fd(); }

  Result<std::unique_ptr<RdmaLink>> accept_ready(std::shared_ptr<RdmaDomain> domain) override {
    const std::lock_guard lock(state_->mutex);
    door_->event.clear();
    while (!door_->waiting.empty() && door_->waiting.front()->disconnected) door_->waiting.pop_front();
    if (door_->waiting.empty()) return std::unique_ptr<RdmaLink>();
    if (!state_->step()) return Error(ErrorKind::io, "injected fault");
    if (domain && !state_->options.single_device)
      return Error(ErrorKind::peer, "RDMA: the connection came in on another device");
    const auto pair = door_->waiting.front();
    door_->waiting.pop_front();
    if (!door_->waiting.empty()) door_->event.set();
    pair->ends[1].domain = domain ? std::move(domain) : std::make_shared<MemoryDomain>(state_);
    return std::unique_ptr<RdmaLink>(std::make_unique<MemoryLink>(state_, pair, 1, "rdma:memory:source"));
  }
  InetAddress bound_address() const override { return at_; }

 private:
  std::shared_ptr<State> state_;
  std::shared_ptr<Door> door_;
  InetAddress at_;
};

}  // namespace

MemoryFabric::MemoryFabric(Options options) : state_(std::make_shared<State>()) { state_->options = options; }
MemoryFabric::~MemoryFabric() = default;

Result<std::unique_ptr<RdmaLink>> MemoryFabric::open(const InetAddress& to, StopSource&,
                                                     std::shared_ptr<RdmaDomain> domain) {
  const std::lock_guard lock(state_->mutex);
  if (!state_->step()) return Error(ErrorKind::io, "RDMA ERROR: could not resolve address " + to.host);
  const auto found = state_->doors.find(to.port);
  auto pair = std::make_shared<Pair>();
  pair->ends[0].domain = domain ? std::move(domain) : std::make_shared<MemoryDomain>(state_);
  return std::unique_ptr<RdmaLink>(
      std::make_unique<MemoryLink>(state_, std::move(pair), 0, fmt::format("rdma:{}:{}", to.host, to.port),
                                   found == state_->doors.end() ? nullptr : found->second));
}

Result<std::unique_ptr<RdmaListener>> MemoryFabric::listen(const InetAddress& at) {
  const std::lock_guard lock(state_->mutex);
  InetAddress bound = at;
  if (bound.port == "0") bound.port = std::to_string(state_->next_port++);
  auto& door = state_->doors[bound.port];
  if (door && door->open) return Error::from_errno("RDMA ERROR: Error: could not rdma_bind_addr!", EADDRINUSE);
  door = std::make_shared<Door>();
  return std::unique_ptr<RdmaListener>(std::make_unique<MemoryListener>(state_, door, bound));
}

void MemoryFabric::fail_step(std::uint64_t step) {
  const std::lock_guard lock(state_->mutex);
  state_->failing = step == 0 ? 0 : state_->steps + step;
}
std::uint64_t MemoryFabric::steps() const {
  const std::lock_guard lock(state_->mutex);
  return state_->steps;
}
void MemoryFabric::cut_all() {
  const std::lock_guard lock(state_->mutex);
  state_->cut = true;
}
void MemoryFabric::say_instead(Bytes private_data) {
  const std::lock_guard lock(state_->mutex);
  state_->said_instead = std::move(private_data);
}

}  // namespace migrationd::testing
