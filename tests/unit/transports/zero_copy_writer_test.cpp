// SPDX-License-Identifier: Apache-2.0
// Over loopback, where the kernel takes zero copy and then copies: all of it but the saving is as on a network.
#include "transports/zero_copy_writer.hpp"

#include "tests/unit/transports/support.hpp"

#include <linux/capability.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/syscall.h>

using namespace migrationd;
using namespace migrationd::testing;
using namespace migrationd::transports;

namespace {

using Outcome = ZeroCopyWriter::Outcome;

struct TcpPair {
  std::unique_ptr<Channel> near;
  UniqueFd far;
};

TcpPair make_tcp_pair(StopSource& stop) {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* const plain = static_cast<sockaddr*>(static_cast<void*>(&address));
  REQUIRE(::bind(listener.get(), plain, size) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  REQUIRE(::getsockname(listener.get(), plain, &size) == 0);
  UniqueFd near(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(near.get(), plain, size) == 0);
  TcpPair out;
  out.far.reset(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  out.near = std::make_unique<DescriptorChannel>(std::move(near), DescriptorKind::socket, stop, "test");
  return out;
}

// Takes so many bytes, on a thread of its own; what it got is for the main thread.
class Drain {
 public:
  Drain(int fd, std::size_t count)
      : got_(count), thread_([this, fd] {
          for (std::size_t have = 0; have < got_.size();) {
            const ssize_t more = ::recv(fd, got_.data() + have, got_.size() - have, 0);
            if (more <= 0) return;
            have += static_cast<std::size_t>(more);
          }
        }) {}
  const Bytes& join() {
    thread_.join();
    return got_;
  }

 private:
  Bytes got_;
  std::thread thread_;
};

Bytes pattern(std::size_t size) {
  Bytes out(size);
  for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<std::byte>(i ^ (i >> 8) ^ (i >> 16));
  return out;
}

// Of the calling thread only.
bool give_up_locking() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  data[0].effective &= ~(1U << CAP_IPC_LOCK);
  return ::syscall(SYS_capset, &header, data) == 0;
}

class MemlockLimit {
 public:
  explicit MemlockLimit(rlim_t bytes) {
    ::getrlimit(RLIMIT_MEMLOCK, &before_);
    const rlimit now{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_MEMLOCK, &now);
  }
  MemlockLimit(const MemlockLimit&) = delete;
  MemlockLimit& operator=(const MemlockLimit&) = delete;
  ~MemlockLimit() { ::setrlimit(RLIMIT_MEMLOCK, &before_); }

 private:
  rlimit before_{};
};

}  // namespace

TEST_CASE("ZeroCopyWriter.everything_arrives_in_order_and_is_settled") {
  const auto stop = make_stop();
  auto pair = make_tcp_pair(*stop);
  auto writer = ZeroCopyWriter::make(*pair.near, *stop);
  REQUIRE(writer.has_value());
  Bytes head = pattern(1344);
  Bytes body = pattern(3'000'000);
  constexpr std::size_t rounds = 5;
  Drain drain(pair.far.get(), rounds * (head.size() + body.size()));
  for (std::size_t i = 0; i < rounds; ++i) {
    const iovec first{head.data(), head.size()};
    const iovec pieces[2] = {{body.data(), 1'000'000}, {body.data() + 1'000'000, 2'000'000}};
    REQUIRE(bool((*writer)->write({&first, 1}, pieces)));
  }
  const auto outcome = (*writer)->settle();
  REQUIRE(outcome.has_value());
  CHECK(*outcome == Outcome::copied);  // loopback
  CHECK((*writer)->settle().value() == Outcome::nothing_sent);
  const Bytes& got = drain.join();
  Bytes expected;
  for (std::size_t i = 0; i < rounds; ++i) {
    expected.insert(expected.end(), head.begin(), head.end());
    expected.insert(expected.end(), body.begin(), body.end());
  }
  CHECK(got == expected);
}

TEST_CASE("ZeroCopyWriter.a_socket_that_cannot_do_it_is_refused_in_qemus_words") {
  const auto stop = make_stop();
  auto pair = make_channel_pair(*stop, *stop);
  const auto writer = ZeroCopyWriter::make(*pair.left, *stop);
  REQUIRE(!writer.has_value());
  CHECK(writer.error().text() == "Zero copy send feature not detected in host kernel");
}

TEST_CASE("ZeroCopyWriter.a_write_and_a_settle_end_with_the_stop") {
  const auto stop = make_stop();
  auto pair = make_tcp_pair(*stop);
  auto writer = ZeroCopyWriter::make(*pair.near, *stop).value();
  Bytes body = pattern(16'000'000);  // more than the sockets hold; nobody reads
  const iovec piece{body.data(), body.size()};
  LateStop late(*stop);
  const auto written = writer->write({}, {&piece, 1});
  late.check_prompt();
  REQUIRE(!written.has_value());
  CHECK(written.error().is_cancelled());
  const auto settled = writer->settle();
  if (settled.has_value()) {
    CHECK(*settled == Outcome::nothing_sent);  // on a busy machine the stop was there before the first byte
  } else {
    CHECK(settled.error().is_cancelled());
  }
}

TEST_CASE("ZeroCopyWriter.a_peer_that_leaves_is_an_error_and_no_wait_for_ever") {
  const auto stop = make_stop();
  auto pair = make_tcp_pair(*stop);
  auto writer = ZeroCopyWriter::make(*pair.near, *stop).value();
  Bytes body = pattern(16'000'000);
  std::thread leaver([&] {
    std::this_thread::sleep_for(50ms);
    pair.far.reset();  // unread bytes: a reset
  });
  const iovec piece{body.data(), body.size()};
  auto outcome = writer->write({}, {&piece, 1});
  leaver.join();
  REQUIRE(!outcome.has_value());
  CHECK(outcome.error().text().starts_with("Unable to write to socket: "));
}

TEST_CASE("ZeroCopyWriter.where_too_little_may_be_locked_it_is_said_at_the_start_and_later_copied") {
  const MemlockLimit limit(64 * 1024);
  bool dropped = false;
  std::string said;
  std::string trouble;
  Outcome outcome = Outcome::nothing_sent;
  Bytes body = pattern(4'000'000);
  const auto stop = make_stop();
  auto pair = make_tcp_pair(*stop);
  Drain drain(pair.far.get(), body.size());
  // Capabilities are a thread's.
  std::thread poor([&] {
    dropped = give_up_locking();
    const auto check = check_locked_memory(1 << 20);
    said = check ? "" : check.error().text();
    auto writer = ZeroCopyWriter::make(*pair.near, *stop);
    if (!writer) return;
    const iovec piece{body.data(), body.size()};
    const auto written = (*writer)->write({}, {&piece, 1});
    if (!written) trouble = written.error().text();
    const auto settled = (*writer)->settle();
    if (settled) outcome = *settled;
  });
  poor.join();
  CHECK(dropped);
  CHECK(said == "Process can't lock enough memory for using MSG_ZEROCOPY: No buffer space available");
  CHECK(trouble.empty());
  CHECK(outcome == Outcome::copied);
  CHECK(drain.join() == body);
}
