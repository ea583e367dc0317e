// SPDX-License-Identifier: Apache-2.0
//
// Outgoing targets that need no listener: files, descriptors, commands, and connections that fail. Those that
// succeed are in listen_test.cpp.
#include "transports/connect.hpp"

#include "tests/unit/transports/support.hpp"

#include <sys/un.h>
#include <sys/wait.h>

#include <cctype>
#include <csignal>
#include <cstdio>

using namespace migrationd;
using namespace migrationd::testing;
using namespace migrationd::transports;

namespace {

Address uri(std::string_view text) {
  auto address = parse_uri(text);
  REQUIRE(address.has_value());
  return std::move(*address);
}

std::string prepare_error(std::string_view text, FdSource& descriptors, bool allow_exec = true) {
  const auto target = prepare_outgoing(uri(text), descriptors, {.allow_exec = allow_exec});
  REQUIRE_FALSE(target.has_value());
  return target.error().text();
}

std::unique_ptr<Channel> open_out(std::string_view text, FdSource& descriptors, StopSource& stop) {
  auto target = prepare_outgoing(uri(text), descriptors, {});
  INFO((target ? std::string() : target.error().text()));
  REQUIRE(target.has_value());
  auto channel = target->connect(stop);
  REQUIRE(channel.has_value());
  return std::move(*channel);
}

std::string connect_error(std::string_view text, StopSource& stop) {
  FakeFdSource descriptors;
  auto target = prepare_outgoing(uri(text), descriptors, {});
  REQUIRE(target.has_value());
  const auto channel = target->connect(stop);
  REQUIRE_FALSE(channel.has_value());
  return channel.error().text();
}

// Whether a process of the group still runs; one that only waits for init to reap it does not.
bool lives(pid_t group) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    if (std::isdigit(static_cast<unsigned char>(entry.path().filename().c_str()[0])) == 0) continue;
    const std::string about = slurp(entry.path() / "stat");
    const auto name_end = about.rfind(')');
    if (name_end == std::string::npos) continue;
    char state = 0;
    int parent = 0;
    int its_group = 0;
    const int fields = std::sscanf(about.c_str() + name_end + 1, " %c %d %d", &state, &parent, &its_group);
    if (fields == 3 && its_group == group && state != 'Z') return true;
  }
  return false;
}

bool no_child_left() { return ::waitpid(-1, nullptr, WNOHANG) == -1 && errno == ECHILD; }

}  // namespace

TEST_CASE("Connect.failures_have_the_texts_of_qemu") {
  const auto stop = make_stop();
  CHECK(connect_error("tcp:127.0.0.1:1", *stop) == "Failed to connect to '127.0.0.1:1': Connection refused");
  CHECK(connect_error("tcp:127.0.0.1:99999", *stop) ==
        "address resolution failed for 127.0.0.1:99999: Servname not supported for ai_socktype");
  CHECK(connect_error("tcp:127.0.0.1:nosuch", *stop) ==
        "address resolution failed for 127.0.0.1:nosuch: Servname not supported for ai_socktype");
  CHECK(connect_error("tcp::1", *stop) == "address resolution failed for :1: Name or service not known");
  CHECK(connect_error("tcp:127.0.0.1:1,ipv4=off,ipv6=off", *stop) == "Cannot disable IPv4 and IPv6 at same time");
  CHECK(connect_error("unix:/nonexistent/x", *stop) ==
        "Failed to connect to '/nonexistent/x': No such file or directory");
  const std::string path = "/tmp/" + std::string(120, 'a');
  CHECK(connect_error("unix:" + path, *stop) == "UNIX socket path '" + path + "' is too long");
  CHECK(connect_error("vsock:a:b", *stop) == "Failed to parse cid 'a'");
  CHECK(connect_error("vsock:1:b", *stop) == "Failed to parse port 'b'");
}

TEST_CASE("Connect.stop_ends_a_wait_for_a_full_unix_queue") {
  const auto stop = make_stop();
  const ScratchDir dir;
  const UniqueFd listening(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  const std::string path = dir.file("s");
  std::memcpy(name.sun_path, path.c_str(), path.size());
  REQUIRE(::bind(listening.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0);
  REQUIRE(::listen(listening.get(), 0) == 0);
  FakeFdSource descriptors;
  auto target = prepare_outgoing(uri("unix:" + path), descriptors, {});
  REQUIRE(target.has_value());
  const auto first = target->connect(*stop);
  REQUIRE(first.has_value());
  LateStop late(*stop);
  const auto second = target->connect(*stop);
  late.check_prompt();
  REQUIRE_FALSE(second.has_value());
  CHECK(second.error().is_cancelled());
}

TEST_CASE("Connect.stop_that_was_raised_before_prevents_connecting") {
  const auto stop = make_stop();
  stop->request();
  FakeFdSource descriptors;
  for (const char* text : {"tcp:127.0.0.1:1", "unix:/nonexistent/x", "tcp:localhost:1"}) {
    auto target = prepare_outgoing(uri(text), descriptors, {});
    REQUIRE(target.has_value());
    CHECK(target->connect(*stop).error().is_cancelled());
  }
}

TEST_CASE("Connect.file_keeps_what_stands_before_the_offset") {
  const auto stop = make_stop();
  const ScratchDir dir;
  FakeFdSource descriptors;
  const std::string path = dir.file("save");
  std::ofstream(path) << "0123456789";
  {
    auto channel = open_out("file:" + path + ",offset=4", descriptors, *stop);
    REQUIRE(bool(write_text(*channel, "QEVM")));
    CHECK(channel->is_file());
  }
  CHECK(slurp(path) == "0123QEVM");
  {
    auto channel = open_out("file:" + path + ",offset=12", descriptors, *stop);
    REQUIRE(bool(write_text(*channel, "X")));
  }
  CHECK(slurp(path) == std::string("0123QEVM\0\0\0\0X", 13));
  { auto channel = open_out("file:" + path, descriptors, *stop); }
  CHECK(slurp(path).empty());
}

TEST_CASE("Connect.file_is_made_private_and_durable") {
  const auto stop = make_stop();
  const ScratchDir dir;
  FakeFdSource descriptors;
  const std::string path = dir.file("new");
  auto channel = open_out("file:" + path, descriptors, *stop);
  struct stat about {};
  REQUIRE(::stat(path.c_str(), &about) == 0);
  CHECK((about.st_mode & 07777) == 0600);
  CHECK(bool(channel->sync_to_disk()));
}

TEST_CASE("Connect.file_errors_are_the_command_s") {
  const ScratchDir dir;
  FakeFdSource descriptors;
  CHECK(prepare_error("file:", descriptors) == "Could not create '': No such file or directory");
  CHECK(prepare_error("file:/nonexistent/f", descriptors) ==
        "Could not create '/nonexistent/f': No such file or directory");
  CHECK(prepare_error("file:" + dir.file(""), descriptors) ==
        "Could not create '" + dir.file("") + "': Is a directory");
  REQUIRE(::mkfifo(dir.file("fifo").c_str(), 0600) == 0);
  CHECK(prepare_error("file:" + dir.file("fifo"), descriptors).find("Could not create") == 0);
}

TEST_CASE("Connect.file_takes_members_of_descriptor_sets") {
  const auto stop = make_stop();
  const ScratchDir dir;
  FakeFdSource descriptors;
  CHECK(prepare_error("file:/dev/fdset/1", descriptors) == "Failed to find fdset /dev/fdset/1");
  const std::string path = dir.file("save");
  std::ofstream(path) << "0123456789";
  UniqueFd member(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  REQUIRE(::lseek(member.get(), 8, SEEK_SET) == 8);
  descriptors.sets["/dev/fdset/1"].push_back(std::move(member));
  {
    // Without an offset: cut to nothing, written at the descriptor's own position (4.3).
    auto channel = open_out("file:/dev/fdset/1", descriptors, *stop);
    CHECK(descriptors.last_flags == (O_WRONLY | O_CREAT));
    REQUIRE(bool(write_text(*channel, "QEVM")));
  }
  CHECK(slurp(path) == std::string("\0\0\0\0\0\0\0\0QEVM", 12));
  {
    auto channel = open_out("file:/dev/fdset/1,offset=2", descriptors, *stop);
    REQUIRE(bool(write_text(*channel, "QEVM")));
  }
  CHECK(slurp(path) == std::string("\0\0QEVM", 6));
}

TEST_CASE("Connect.fd_takes_named_sockets_pipes_and_files") {
  const auto stop = make_stop();
  const ScratchDir dir;
  FakeFdSource descriptors;
  CHECK(prepare_error("fd:7", descriptors) == "File descriptor named '7' has not been found");
  const std::string path = dir.file("save");
  std::ofstream(path) << "0123456789";
  UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  REQUIRE(::lseek(file.get(), 4, SEEK_SET) == 4);
  descriptors.named["f"] = std::move(file);
  auto target = prepare_outgoing(uri("fd:f"), descriptors, {});
  REQUIRE(target.has_value());
  CHECK(target->is_file());
  CHECK_FALSE(target->is_socket_address());
  CHECK(descriptors.named.empty());
  {
    auto channel = target->connect(*stop);
    REQUIRE(channel.has_value());
    REQUIRE(bool(write_text(**channel, "QEVM")));
  }
  CHECK(slurp(path) == "0123QEVM89");
  CHECK(target->connect(*stop).error().text() == "fd:f gives one channel only");

  int fds[2];
  REQUIRE(::pipe2(fds, O_CLOEXEC) == 0);
  const UniqueFd read_end(fds[0]);
  descriptors.named["p"] = UniqueFd(fds[1]);
  auto pipe = open_out("fd:p", descriptors, *stop);
  CHECK_FALSE(pipe->is_file());
  REQUIRE(bool(write_text(*pipe, "QEVM")));
  char got[8];
  CHECK(::read(read_end.get(), got, sizeof got) == 4);

  descriptors.named["d"] = UniqueFd(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  CHECK(prepare_error("fd:d", descriptors) == "fd:d: the descriptor is neither a socket, a pipe nor a file");
}

TEST_CASE("Connect.rdma_needs_what_connects") {
  FakeFdSource descriptors;
  CHECK(prepare_error("rdma:h:1", descriptors) == "rdma:h:1 cannot carry a recovery: give another kind of address");
}

TEST_CASE("Connect.exec_delivers_to_the_command_and_waits_for_it") {
  const auto stop = make_stop();
  const ScratchDir dir;
  FakeFdSource descriptors;
  const std::string path = dir.file("out");
  {
    auto channel = open_out("exec:cat > " + path + "; echo done >> " + path, descriptors, *stop);
    CHECK(channel->bidirectional());
    REQUIRE(bool(write_text(*channel, std::string(300'000, 'x'))));
    REQUIRE(bool(channel->finish_writing()));
    CHECK(slurp(path) == std::string(300'000, 'x') + "done\n");
  }
  CHECK(no_child_left());
}

TEST_CASE("Connect.exec_commands_that_talk_do_not_hold_up_the_end") {
  const auto stop = make_stop();
  FakeFdSource descriptors;
  auto channel = open_out("exec:cat > /dev/null; head -c 3000000 /dev/zero", descriptors, *stop);
  REQUIRE(bool(write_text(*channel, "x")));
  CHECK(bool(channel->finish_writing()));
}

TEST_CASE("Connect.exec_tells_how_the_command_ended") {
  const auto stop = make_stop();
  FakeFdSource descriptors;
  {
    auto channel = open_out("exec:cat > /dev/null; exit 3", descriptors, *stop);
    const auto finished = channel->finish_writing();
    REQUIRE_FALSE(bool(finished));
    CHECK(finished.error().kind() == ErrorKind::peer);
    CHECK(finished.error().text() == "exec:cat > /dev/null; exit 3: the command ended with status 3");
  }
  {
    auto channel = open_out("exec:kill -9 $$", descriptors, *stop);
    CHECK(channel->finish_writing().error().text().find("was ended by signal 9") != std::string::npos);
  }
  CHECK(no_child_left());
}

TEST_CASE("Connect.exec_with_a_command_that_reads_nothing_says_broken_pipe") {
  const auto stop = make_stop();
  FakeFdSource descriptors;
  auto channel = open_out("exec:exit 0", descriptors, *stop);
  const auto written = write_text(*channel, std::string(4'000'000, 'x'));
  REQUIRE_FALSE(bool(written));
  CHECK(written.error().text() == "Unable to write to command: Broken pipe");
  // One that failed is the reason, however much it had read.
  auto failing = open_out("exec:exit 3", descriptors, *stop);
  const auto refused = write_text(*failing, std::string(4'000'000, 'x'));
  REQUIRE_FALSE(bool(refused));
  CHECK(refused.error().text() ==
        "exec:exit 3: the command ended with status 3: Unable to write to command: Broken pipe");
}

TEST_CASE("Connect.exec_is_ended_by_the_stop_with_its_whole_pipeline") {
  const auto stop = make_stop();
  const ScratchDir dir;
  FakeFdSource descriptors;
  const std::string mark = dir.file("pids");
  auto channel = open_out("exec:sleep 60 | (echo $$ > " + mark + "; sleep 61)", descriptors, *stop);
  while (slurp(mark).empty()) std::this_thread::sleep_for(5ms);
  LateStop late(*stop);
  const auto finished = channel->finish_writing();
  late.check_prompt();
  REQUIRE_FALSE(bool(finished));
  CHECK(finished.error().is_cancelled());
  CHECK(no_child_left());
  const pid_t group = std::stoi(slurp(mark));
  for (int i = 0; i < 3000 && lives(group); ++i) std::this_thread::sleep_for(10ms);
  CHECK_FALSE(lives(group));
}

TEST_CASE("Connect.exec_that_ignores_everything_is_killed") {
  const auto stop = make_stop();
  const ScratchDir dir;
  FakeFdSource descriptors;
  const std::string mark = dir.file("ready");
  const auto start = std::chrono::steady_clock::now();
  {
    auto channel =
        open_out("exec:trap '' TERM PIPE; echo > " + mark + "; while :; do sleep 0.1; done", descriptors, *stop);
    while (slurp(mark).empty()) std::this_thread::sleep_for(5ms);
  }
  CHECK(std::chrono::steady_clock::now() - start < 60s);  // it would run for ever
  CHECK(no_child_left());
}

TEST_CASE("Connect.exec_writing_to_a_stalled_command_ends_with_the_stop") {
  const auto stop = make_stop();
  FakeFdSource descriptors;
  auto channel = open_out("exec:sleep 60", descriptors, *stop);
  LateStop late(*stop);
  const auto written = write_text(*channel, std::string(4'000'000, 'x'));
  late.check_prompt();
  REQUIRE_FALSE(bool(written));
  CHECK(written.error().is_cancelled());
}

TEST_CASE("Connect.exec_errors_are_the_command_s") {
  FakeFdSource descriptors;
  const auto missing = prepare_outgoing(ExecAddress{{"/nonexist"}}, descriptors, {});
  REQUIRE_FALSE(missing.has_value());
  CHECK(missing.error().text() == "Failed to execute child process “/nonexist” (No such file or directory)");
  CHECK_FALSE(prepare_outgoing(ExecAddress{}, descriptors, {}).has_value());
  CHECK(prepare_error("exec:true", descriptors, false) ==
        "exec: is switched off in this daemon (--allow-exec=on allows it)");
  {
    // Prepared and never used: ended, not left behind.
    const auto target = prepare_outgoing(uri("exec:sleep 60"), descriptors, {});
    CHECK(target.has_value());
  }
  CHECK(no_child_left());
}
