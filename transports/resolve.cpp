// SPDX-License-Identifier: Apache-2.0
#include "transports/socket_address.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

namespace migrationd::transports {

namespace {

using std::chrono::milliseconds;

// Look-ups whose caller has gone. A resolver gives up within half a minute, so more than a few at once means
// that somebody migrates to dead names in a loop.
constexpr std::size_t max_left_behind = 8;

struct FreeAddrinfo {
  void operator()(addrinfo* list) const noexcept { ::freeaddrinfo(list); }
};
using AddrinfoList = std::unique_ptr<addrinfo, FreeAddrinfo>;

// One getaddrinfo call on its own thread. The thread owns nothing of the caller: it shares the state.
class Lookup {
 public:
  static Result<Lookup> start(const InetAddress& inet, const addrinfo& hints, decltype(&::getaddrinfo) look_up) {
    UniqueFd done(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!done) return Error::from_errno("make a descriptor for the name look-up");
    Lookup out;
    out.state_ = std::make_shared<State>();
    out.state_->done = std::move(done);
    // std::thread's constructor is the one throwing call here: a process at its thread limit is no reason to end.
    try {
      out.thread_ = std::thread(run, out.state_, inet.host, inet.port, hints, look_up);
    } catch (const std::system_error& failure) {
      return Error::from_errno("start the name look-up", failure.code().value());
    }
    return out;
  }

  bool finished() const noexcept { return state_->finished.load(std::memory_order_acquire); }
  int done_fd() const noexcept { return state_->done.get(); }
  void join() { thread_.join(); }
  int code() const noexcept { return state_->code; }
  int sys_errno() const noexcept { return state_->sys_errno; }
  const addrinfo* list() const noexcept { return state_->list.get(); }

 private:
  struct State {
    UniqueFd done;
    std::atomic<bool> finished{false};
    int code = 0;
    int sys_errno = 0;
    AddrinfoList list;
  };

  static void run(const std::shared_ptr<State>& state, const std::string& host, const std::string& port,
                  const addrinfo& hints, decltype(&::getaddrinfo) look_up) {
    addrinfo* list = nullptr;
    state->code = look_up(host.c_str(), port.c_str(), &hints, &list);
    state->sys_errno = errno;
    state->list.reset(list);
    state->finished.store(true, std::memory_order_release);
    ::eventfd_write(state->done.get(), 1);
  }

  std::shared_ptr<State> state_;
  std::thread thread_;
};

// Keeps abandoned threads until they end, so that none is detached. The mutex: several migrations' movers may
// resolve at once, and this is the process's one list.
class LeftBehind {
 public:
  static LeftBehind& instance() {
    static LeftBehind list;
    return list;
  }
  ~LeftBehind() {
    for (Lookup& lookup : lookups_) lookup.join();
  }
  // False when too many are still running.
  bool has_room() {
    const std::lock_guard lock(mutex_);
    std::erase_if(lookups_, [](Lookup& lookup) {
      if (!lookup.finished()) return false;
      lookup.join();
      return true;
    });
    return lookups_.size() < max_left_behind;
  }
  void add(Lookup lookup) {
    const std::lock_guard lock(mutex_);
    lookups_.push_back(std::move(lookup));
  }

 private:
  std::mutex mutex_;
  std::vector<Lookup> lookups_;
};

Error resolution_error(const InetAddress& inet, std::string_view why) {
  return Error(ErrorKind::io, fmt::format("address resolution failed for {}: {}", peer_text(Address(inet)), why));
}

Error resolution_error(const InetAddress& inet, int code, int sys_errno) {
  if (code == EAI_SYSTEM) return resolution_error(inet, std::strerror(sys_errno));
  return resolution_error(inet, ::gai_strerror(code));
}

Result<int> family_of(const InetAddress& inet) {
  const bool no4 = inet.ipv4 == false;
  const bool no6 = inet.ipv6 == false;
  const bool only4 = inet.ipv4 == true;
  const bool only6 = inet.ipv6 == true;
  if (no4 && no6) return plan_error("Cannot disable IPv4 and IPv6 at same time");
  if (only4 && only6) return AF_UNSPEC;
  if (only6 || no4) return AF_INET6;
  if (only4 || no6) return AF_INET;
  return AF_UNSPEC;
}

std::vector<SocketAddress> collect(const addrinfo* list) {
  std::vector<SocketAddress> out;
  for (; list != nullptr; list = list->ai_next) {
    SocketAddress& entry = out.emplace_back();
    entry.length = std::min<socklen_t>(list->ai_addrlen, sizeof entry.storage);
    std::memcpy(&entry.storage, list->ai_addr, entry.length);
  }
  return out;
}

// getaddrinfo takes 99999 and cuts it to 16 bits.
bool port_too_large(const std::string& port) {
  std::uint64_t number = 0;
  const auto [end, failure] = std::from_chars(port.data(), port.data() + port.size(), number);
  return end == port.data() + port.size() && (failure != std::errc() || number > 65535);
}

Result<Lookup> wait_for_lookup(const InetAddress& inet, const addrinfo& hints, const ResolveOptions& options) {
  if (!LeftBehind::instance().has_room()) return resolution_error(inet, "too many look-ups are still running");
  MD_TRY(Lookup lookup, Lookup::start(inet, hints, options.look_up));
  const auto deadline = std::chrono::steady_clock::now() + options.limit;
  while (!lookup.finished()) {
    const auto left = std::chrono::ceil<milliseconds>(deadline - std::chrono::steady_clock::now());
    const bool stopped = options.stop != nullptr && options.stop->requested();
    if (stopped || left <= milliseconds(0)) {
      LeftBehind::instance().add(std::move(lookup));
      if (stopped) return cancelled_error();
      return resolution_error(inet, "timed out");
    }
    pollfd polled[2] = {{lookup.done_fd(), POLLIN, 0}, {options.stop ? options.stop->fd() : -1, POLLIN, 0}};
    ::poll(polled, 2, static_cast<int>(left.count()));
  }
  lookup.join();
  return lookup;
}

}  // namespace

Result<std::vector<SocketAddress>> resolve(const InetAddress& inet, const ResolveOptions& options) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_V4MAPPED | (options.passive ? AI_PASSIVE : 0);
  MD_TRY(hints.ai_family, family_of(inet));
  if (port_too_large(inet.port)) return resolution_error(inet, ::gai_strerror(EAI_SERVICE));
  // Numbers, and any address, need no resolver and no thread.
  const bool any = options.passive && inet.host.empty();
  addrinfo numeric = hints;
  numeric.ai_flags |= AI_NUMERICHOST;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(any ? nullptr : inet.host.c_str(), inet.port.c_str(), &numeric, &found);
  const AddrinfoList numeric_list(found);
  if (code == 0) return collect(found);
  if (any || inet.host.empty() || code != EAI_NONAME) return resolution_error(inet, code, errno);

  MD_TRY(const Lookup lookup, wait_for_lookup(inet, hints, options));
  if (lookup.code() != 0) return resolution_error(inet, lookup.code(), lookup.sys_errno());
  return collect(lookup.list());
}

}  // namespace migrationd::transports
