// SPDX-License-Identifier: Apache-2.0
// Descriptors over a socket: one message each, owned on arrival, every wait ended by the stop.
#include "transports/descriptor_passing.hpp"

#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <iterator>
#include <thread>

using namespace migrationd;
using namespace migrationd::transports;

namespace {

constexpr auto soon = std::chrono::milliseconds(20);
constexpr auto late = std::chrono::seconds(30);

struct Pair {
  UniqueFd one, other;
  std::unique_ptr<StopSource> stop;
  Pair() {
    std::array<int, 2> ends{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0);
    one.reset(ends[0]);
    other.reset(ends[1]);
    auto made = StopSource::make();
    REQUIRE(made.has_value());
    stop = std::move(*made);
  }
};

Deadline in(std::chrono::milliseconds wait) { return std::chrono::steady_clock::now() + wait; }

ino_t inode(int fd) {
  struct stat status {};
  REQUIRE(::fstat(fd, &status) == 0);
  return status.st_ino;
}

std::size_t open_descriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

}  // namespace

TEST_CASE("DescriptorPassing.one_message_never_crosses_a_second_descriptor") {
  const Pair pair;
  const UniqueFd first(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const UniqueFd second(::open("/dev/zero", O_RDONLY | O_CLOEXEC));
  REQUIRE(bool(send_bytes(pair.one.get(), as_bytes("abc"), *pair.stop)));
  REQUIRE(bool(send_descriptor(pair.one.get(), std::byte{0x20}, first.get(), *pair.stop)));
  REQUIRE(bool(send_bytes(pair.one.get(), as_bytes("de"), *pair.stop)));
  REQUIRE(bool(send_descriptor(pair.one.get(), std::byte{0x21}, second.get(), *pair.stop)));
  REQUIRE(bool(end_writing(pair.one.get())));

  std::string bytes;
  std::vector<UniqueFd> descriptors;
  std::array<std::byte, 64> buffer{};
  while (true) {
    const std::size_t before = descriptors.size();
    auto got = receive(pair.other.get(), buffer, descriptors, *pair.stop, in(late));
    REQUIRE(got.has_value());
    if (*got == 0) break;
    CHECK(descriptors.size() - before <= 1);
    bytes += as_text(ByteView(buffer).first(*got));
  }
  CHECK(bytes ==
        "abc\x20"
        "de\x21");
  REQUIRE(descriptors.size() == 2);
  CHECK(inode(descriptors[0].get()) == inode(first.get()));
  CHECK(inode(descriptors[1].get()) == inode(second.get()));
  for (const UniqueFd& fd : descriptors) CHECK((::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) != 0);
}

TEST_CASE("DescriptorPassing.what_cannot_be_installed_is_an_error_and_leaks_nothing") {
  const Pair pair;
  const UniqueFd one(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  REQUIRE(bool(send_descriptor(pair.one.get(), std::byte{0x20}, one.get(), *pair.stop)));
  const std::size_t before = open_descriptors();
  rlimit limit{};
  REQUIRE(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
  // No number is left; poll(2) takes no more entries than the limit either.
  const rlimit none{static_cast<rlim_t>(UniqueFd(::dup(one.get())).get()), limit.rlim_max};
  std::vector<UniqueFd> descriptors;
  std::array<std::byte, 8> buffer{};
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &none) == 0);
  auto got = receive(pair.other.get(), buffer, descriptors, *pair.stop, {});
  REQUIRE(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
  REQUIRE_FALSE(got.has_value());
  CHECK(got.error().text().find("descriptors were lost on the way") == 0);
  descriptors.clear();
  CHECK(open_descriptors() == before);
}

TEST_CASE("DescriptorPassing.a_silent_peer_is_waited_for_until_the_deadline") {
  const Pair pair;
  std::vector<UniqueFd> descriptors;
  std::array<std::byte, 8> buffer{};
  const auto got = receive(pair.other.get(), buffer, descriptors, *pair.stop, in(soon));
  REQUIRE_FALSE(got.has_value());
  CHECK(got.error().sys_errno() == ETIMEDOUT);
}

TEST_CASE("DescriptorPassing.the_stop_ends_every_wait") {
  const Pair pair;
  std::vector<UniqueFd> descriptors;
  std::array<std::byte, 8> buffer{};
  Result<std::size_t> read(std::size_t{0});
  Result<bool> hung_up(true);
  std::thread reader([&] { read = receive(pair.other.get(), buffer, descriptors, *pair.stop, {}); });
  std::thread waiter([&] { hung_up = await_hangup(pair.one.get(), *pair.stop); });
  pair.stop->request();
  reader.join();
  waiter.join();
  REQUIRE_FALSE(read.has_value());
  CHECK(read.error().is_cancelled());
  REQUIRE_FALSE(hung_up.has_value());
  CHECK(hung_up.error().is_cancelled());
  CHECK_FALSE(bool(send_bytes(pair.one.get(), as_bytes("x"), *pair.stop)));
}

TEST_CASE("DescriptorPassing.the_peers_close_is_the_hangup_and_its_bytes_are_not") {
  Pair pair;
  REQUIRE(bool(end_writing(pair.one.get())));
  // Nobody looks at what the new process says.
  REQUIRE(bool(send_bytes(pair.other.get(), as_bytes("hello"), *pair.stop)));
  std::thread closer([&] { pair.other.reset(); });
  const auto hung_up = await_hangup(pair.one.get(), *pair.stop);
  closer.join();
  REQUIRE(hung_up.has_value());
  CHECK(*hung_up);
}

TEST_CASE("DescriptorPassing.the_end_of_a_process_that_is_watched_is_a_hangup_whoever_holds_its_socket") {
  const Pair pair;  // for the stop
  sockaddr_un place{};
  place.sun_family = AF_UNIX;  // no name: the kernel finds one
  socklen_t size = sizeof(sa_family_t);
  const UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&place), size) == 0);
  size = sizeof place;
  REQUIRE(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&place), &size) == 0);
  REQUIRE(::listen(listener.get(), 1) == 0);
  // The socket is ours as much as the child's, which connects it: only its process can show its end.
  const UniqueFd shared(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  std::array<int, 2> until{};
  REQUIRE(::pipe2(until.data(), O_CLOEXEC) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char word = 0;
    ::close(until[1]);
    const bool connected = ::connect(shared.get(), reinterpret_cast<const sockaddr*>(&place), size) == 0;
    // Not _exit(): ThreadSanitizer would look for the parent's threads here.
    ::syscall(SYS_exit_group, connected && ::read(until[0], &word, 1) == 0 ? 0 : 1);
  }
  REQUIRE(child > 0);
  const UniqueFd child_reads(until[0]);
  UniqueFd child_lives(until[1]);
  const UniqueFd accepted(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const UniqueFd process = watch_peer_process(accepted.get());
  REQUIRE(process);
  pollfd polled{process.get(), POLLIN, 0};
  CHECK(::poll(&polled, 1, 0) == 0);
  child_lives.reset();
  const auto hung_up = await_hangup(accepted.get(), *pair.stop, process.get());
  REQUIRE(hung_up.has_value());
  CHECK(*hung_up);
  int status = -1;
  REQUIRE(::waitpid(child, &status, 0) == child);
  CHECK(status == 0);
}

TEST_CASE("DescriptorPassing.this_process_is_not_watched") {
  const Pair pair;
  CHECK_FALSE(watch_peer_process(pair.one.get()));
}

TEST_CASE("DescriptorPassing.a_peer_that_closed_without_reading_is_told_apart") {
  Pair pair;
  REQUIRE(bool(send_bytes(pair.one.get(), as_bytes("list"), *pair.stop)));
  REQUIRE(bool(end_writing(pair.one.get())));
  pair.other.reset();
  const auto hung_up = await_hangup(pair.one.get(), *pair.stop);
  REQUIRE(hung_up.has_value());
  CHECK_FALSE(*hung_up);
}

TEST_CASE("DescriptorPassing.a_peer_that_is_gone_fails_the_write") {
  Pair pair;
  pair.other.reset();
  const UniqueFd one(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  CHECK(send_bytes(pair.one.get(), as_bytes("x"), *pair.stop).error().sys_errno() == EPIPE);
  CHECK(send_descriptor(pair.one.get(), std::byte{0x20}, one.get(), *pair.stop).error().sys_errno() == EPIPE);
  // Its end is a hangup, not an error of ours.
  CHECK(bool(end_writing(pair.one.get())));
}

TEST_CASE("DescriptorPassing.more_bytes_than_the_socket_holds_wait_for_the_reader") {
  const Pair pair;
  const std::string much(4 << 20, 'x');
  std::thread writer([&] {
    const auto sent = send_bytes(pair.one.get(), as_bytes(much), *pair.stop);
    [[maybe_unused]] const auto ended = end_writing(pair.one.get());
  });
  std::size_t total = 0;
  std::vector<UniqueFd> descriptors;
  std::vector<std::byte> buffer(1 << 16);
  while (true) {
    auto got = receive(pair.other.get(), buffer, descriptors, *pair.stop, in(late));
    if (!got || *got == 0) break;
    total += *got;
  }
  writer.join();
  CHECK(total == much.size());
}
