// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/connection.hpp"
#include "daemon/control/listening_socket.hpp"

#include "base/limits.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>

using namespace migrationd;
using namespace migrationd::control;
using namespace std::chrono_literals;

namespace {

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = "/tmp/control-socket-test.XXXXXX";
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

mode_t mode_of(const std::string& path) {
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  return status.st_mode & 07777;
}

std::pair<UniqueFd, UniqueFd> socket_pair() {
  std::array<int, 2> ends{};
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends.data()) == 0);
  return {UniqueFd(ends[0]), UniqueFd(ends[1])};
}

void send_with_fds(int socket, std::string text, const std::vector<int>& fds) {
  std::vector<char> control(CMSG_SPACE(fds.size() * sizeof(int)));
  iovec where{text.data(), text.size()};
  msghdr message{};
  message.msg_iov = &where;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  auto* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
  std::memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
  REQUIRE(::sendmsg(socket, &message, 0) == static_cast<ssize_t>(text.size()));
}

void send_text(int socket, std::string_view text) {
  REQUIRE(::send(socket, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()));
}

// Keeps what it hears: each chunk as "text+number of descriptors".
class Ear final : public ConnectionListener {
 public:
  void on_input(std::string_view bytes, std::vector<UniqueFd> fds) override {
    chunks.push_back(std::string(bytes) + "+" + std::to_string(fds.size()));
    for (const auto& fd : fds) {
      if ((::fcntl(fd.get(), F_GETFL) & O_NONBLOCK) != 0) blocking = false;
      if ((::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC) == 0) close_on_exec = false;
    }
  }
  void on_end_of_input() override { chunks.push_back("end"); }
  void on_closed(std::string_view why) override { closed = why; }

  std::vector<std::string> chunks;
  std::string closed;
  bool blocking = true;
  bool close_on_exec = true;
};

struct Fixture {
  EventLoop loop;
  Ear ear;
  UniqueFd client;
  std::unique_ptr<Connection> connection;

  Fixture() {
    auto [ours, theirs] = socket_pair();
    client = std::move(theirs);
    connection = std::make_unique<Connection>(loop, std::move(ours), ear);
  }
  void settle() {
    while (loop.run_for(5ms)) {
    }
  }
  void read(Reading what = Reading::anything) {
    connection->read(what);
    settle();
  }
};

}  // namespace

TEST_CASE("ListeningSocket.is_private_until_told_otherwise") {
  TemporaryDirectory directory;
  const auto path = directory.file("a.sock");
  {
    auto socket = ListeningSocket::bind({path, std::nullopt, std::nullopt});
    REQUIRE(socket.has_value());
    CHECK(mode_of(path) == 0600);
    CHECK(socket->name() == "unix:" + path);
  }
  CHECK_FALSE(std::filesystem::exists(path));
  auto socket = ListeningSocket::bind({path, 0666, std::to_string(::getgid())});
  REQUIRE(socket.has_value());
  CHECK(mode_of(path) == 0666);
}

TEST_CASE("ListeningSocket.group_without_mode_may_connect") {
  TemporaryDirectory directory;
  const auto path = directory.file("a.sock");
  auto socket = ListeningSocket::bind({path, std::nullopt, std::to_string(::getgid())});
  REQUIRE(socket.has_value());
  CHECK(mode_of(path) == 0660);
  auto unknown = ListeningSocket::bind({directory.file("b.sock"), std::nullopt, "no-such-group-here"});
  REQUIRE_FALSE(unknown.has_value());
  CHECK(unknown.error().text() == "control socket: there is no group 'no-such-group-here'");
}

TEST_CASE("ListeningSocket.live_path_is_refused_and_left_alone") {
  TemporaryDirectory directory;
  const auto path = directory.file("a.sock");
  auto first = ListeningSocket::bind({path, std::nullopt, std::nullopt});
  REQUIRE(first.has_value());
  auto second = ListeningSocket::bind({path, std::nullopt, std::nullopt});
  REQUIRE_FALSE(second.has_value());
  CHECK(second.error().text() == "control socket " + path + ": in use by another process");
  CHECK(std::filesystem::exists(path));
}

TEST_CASE("ListeningSocket.stale_path_is_replaced_and_a_foreign_one_not_removed") {
  TemporaryDirectory directory;
  const auto path = directory.file("a.sock");
  auto killed =
      std::make_unique<ListeningSocket>(std::move(*ListeningSocket::bind({path, std::nullopt, std::nullopt})));
  const UniqueFd still_bound(::dup(killed->fd()));
  // What a killed daemon leaves: the path without a listener. The end of `killed` must not remove the new socket.
  REQUIRE(::shutdown(still_bound.get(), SHUT_RDWR) == 0);
  auto fresh = ListeningSocket::bind({path, std::nullopt, std::nullopt});
  REQUIRE(fresh.has_value());
  killed.reset();
  CHECK(std::filesystem::exists(path));
}

TEST_CASE("ListeningSocket.other_files_are_never_replaced") {
  TemporaryDirectory directory;
  const auto path = directory.file("precious");
  std::ofstream(path) << "data";
  auto socket = ListeningSocket::bind({path, std::nullopt, std::nullopt});
  REQUIRE_FALSE(socket.has_value());
  CHECK(socket.error().text() == "control socket " + path + ": the path exists and is not a socket");
  CHECK(std::filesystem::file_size(path) == 4);
  auto missing = ListeningSocket::bind({directory.file("no/such/dir"), std::nullopt, std::nullopt});
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().sys_errno() == ENOENT);
  auto longer = ListeningSocket::bind({directory.file(std::string(120, 'x')), std::nullopt, std::nullopt});
  REQUIRE_FALSE(longer.has_value());
  CHECK(longer.error().text().find("is too long") != std::string::npos);
}

TEST_CASE("ListeningSocket.adopts_only_listening_stream_sockets") {
  TemporaryDirectory directory;
  const auto path = directory.file("a.sock");
  auto bound = ListeningSocket::bind({path, std::nullopt, std::nullopt});
  REQUIRE(bound.has_value());
  {
    auto adopted = ListeningSocket::adopt(UniqueFd(::dup(bound->fd())));
    REQUIRE(adopted.has_value());
    CHECK(adopted->name() == "unix:" + path);
  }
  CHECK(std::filesystem::exists(path));
  auto [one, other] = socket_pair();
  CHECK_FALSE(ListeningSocket::adopt(std::move(one)).has_value());
}

TEST_CASE("Connection.descriptors_count_from_the_byte_they_came_with") {
  Fixture f;
  const std::vector<int> pair{f.client.get(), f.client.get()};
  send_text(f.client.get(), "plain ");
  send_text(f.client.get(), "more");
  send_with_fds(f.client.get(), "one", {f.client.get()});
  send_with_fds(f.client.get(), "two", pair);
  send_text(f.client.get(), "tail");
  for (int i = 0; i < 6; ++i) f.read();
  CHECK(f.ear.chunks == std::vector<std::string>{"plain more+0", "o+1", "ne+0", "t+2", "wotail+0"});
  CHECK(f.ear.blocking);
  CHECK(f.ear.close_on_exec);
}

TEST_CASE("Connection.descriptors_wait_while_only_bytes_are_wanted") {
  Fixture f;
  send_text(f.client.get(), "a");
  send_with_fds(f.client.get(), "b", {f.client.get()});
  f.read(Reading::bytes_only);
  f.read(Reading::bytes_only);
  CHECK(f.ear.chunks == std::vector<std::string>{"a+0"});
  f.read(Reading::anything);
  CHECK(f.ear.chunks == std::vector<std::string>{"a+0", "b+1"});
}

TEST_CASE("Connection.at_most_sixteen_descriptors_are_taken_from_a_message") {
  Fixture f;
  send_with_fds(f.client.get(), "x", std::vector<int>(20, f.client.get()));
  f.read();
  CHECK(f.ear.chunks == std::vector<std::string>{"x+16"});
}

TEST_CASE("Connection.half_closed_client_still_gets_its_output") {
  Fixture f;
  send_text(f.client.get(), "q");
  REQUIRE(::shutdown(f.client.get(), SHUT_WR) == 0);
  f.read();
  f.read();
  CHECK(f.ear.chunks == std::vector<std::string>{"q+0", "end"});
  f.connection->send("answer\r\n");
  f.connection->close_when_written();
  f.settle();
  CHECK(f.ear.closed == "done");
  std::array<char, 16> got{};
  CHECK(::recv(f.client.get(), got.data(), got.size(), 0) == 8);
}

TEST_CASE("Connection.slow_reader_gets_everything_in_order") {
  Fixture f;
  std::string sent;
  for (int i = 0; i < 100; ++i) {
    const std::string line = std::to_string(i) + std::string(10000, 'x') + "\r\n";
    sent += line;
    f.connection->send(line);
  }
  CHECK(f.connection->unread_output() > 0);
  std::string got;
  std::vector<char> buffer(4096);
  while (got.size() < sent.size()) {
    const auto count = ::recv(f.client.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (count > 0)
      got.append(buffer.data(), static_cast<std::size_t>(count));
    else
      REQUIRE(f.loop.run_for(100ms));
  }
  CHECK((got == sent));
}

TEST_CASE("Connection.client_that_does_not_read_is_given_up_at_the_bound") {
  Fixture f;
  const std::string line(1 << 20, 'x');
  std::size_t lines = 0;
  while (!f.connection->is_closed() && lines < 100) {
    f.connection->send(line);
    ++lines;
  }
  CHECK(lines > limits::qmp_unread_output / line.size());
  CHECK(lines < 2 * limits::qmp_unread_output / line.size());
  f.settle();
  CHECK(f.ear.closed == "does not read its replies");
}

TEST_CASE("Connection.vanished_client_is_noticed_when_written_to") {
  Fixture f;
  f.client.reset();
  f.connection->send("hello\r\n");
  f.settle();
  CHECK(f.ear.closed == "Broken pipe");
}
