// SPDX-License-Identifier: Apache-2.0
#include "transports/listen.hpp"

#include "tests/unit/transports/support.hpp"
#include "transports/connect.hpp"

#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <poll.h>

using namespace migrationd;
using namespace migrationd::testing;
using namespace migrationd::transports;

namespace {

Address uri(std::string_view text) {
  auto address = parse_uri(text);
  REQUIRE(address.has_value());
  return std::move(*address);
}

IncomingTarget listening(std::string_view text) {
  FakeFdSource descriptors;
  auto target = open_incoming(uri(text), descriptors, {});
  INFO(text << ": " << (target ? std::string() : target.error().text()));
  REQUIRE(target.has_value());
  REQUIRE(target->listener() != nullptr);
  return std::move(*target);
}

std::string listen_error(std::string_view text, const ListenOptions& options = {}) {
  FakeFdSource descriptors;
  const auto target = open_incoming(uri(text), descriptors, options);
  REQUIRE_FALSE(target.has_value());
  return target.error().text();
}

std::unique_ptr<Channel> connect_to(const Address& address, StopSource& stop) {
  FakeFdSource descriptors;
  auto target = prepare_outgoing(address, descriptors, {});
  REQUIRE(target.has_value());
  auto channel = target->connect(stop);
  INFO(to_string(address) << ": " << (channel ? std::string() : channel.error().text()));
  REQUIRE(channel.has_value());
  return std::move(*channel);
}

void check_talk(Channel& out, Channel& in) {
  REQUIRE(bool(write_text(out, "there")));
  REQUIRE(bool(out.finish_writing()));
  CHECK(read_all(in) == "there");
  REQUIRE(bool(write_text(in, "back")));
  REQUIRE(bool(in.finish_writing()));
  CHECK(read_all(out) == "back");
}

void check_connection(IncomingTarget& target, const Address& to) {
  const auto stop = make_stop();
  auto out = connect_to(to, *stop);
  auto in = target.listener()->accept(*stop);
  REQUIRE(in.has_value());
  check_talk(*out, **in);
}

const InetAddress& inet(const Address& address) { return std::get<InetAddress>(address); }

bool has_ipv6() {
  const UniqueFd fd(::socket(AF_INET6, SOCK_STREAM, 0));
  sockaddr_in6 any{};
  any.sin6_family = AF_INET6;
  any.sin6_addr = in6addr_loopback;
  return fd && ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&any), sizeof any) == 0;
}

}  // namespace

TEST_CASE("Listen.tcp_reports_the_port_the_system_chose") {
  auto target = listening("tcp:127.0.0.1:0");
  const auto& bound = target.listener()->bound_addresses();
  REQUIRE(bound.size() == 1);
  CHECK(inet(bound[0]).host == "127.0.0.1");
  CHECK(inet(bound[0]).ipv4 == true);
  CHECK_FALSE(inet(bound[0]).ipv6.has_value());
  CHECK(std::stoi(inet(bound[0]).port) > 0);
  check_connection(target, bound[0]);
}

TEST_CASE("Listen.an_empty_host_takes_both_families_on_one_port") {
  auto target = listening("tcp::0");
  const auto& bound = target.listener()->bound_addresses();
  const std::string port = inet(bound[0]).port;
  InetAddress four{.host = "127.0.0.1", .port = port};
  check_connection(target, four);
  if (!has_ipv6()) {
    WARN("skipped in part: no IPv6 here");
    return;
  }
  REQUIRE(bound.size() == 2);
  CHECK(inet(bound[0]).host == "::");
  CHECK(inet(bound[1]).host == "0.0.0.0");
  CHECK(inet(bound[1]).port == port);
  check_connection(target, InetAddress{.host = "::1", .port = port});
  check_connection(target, InetAddress{.host = "localhost", .port = port});
}

TEST_CASE("Listen.any_ipv6_address_takes_ipv4_too_unless_told_not_to") {
  if (!has_ipv6()) {
    WARN("skipped: no IPv6 here");
    return;
  }
  const auto stop = make_stop();
  auto both = listening("tcp:[::]:0");
  REQUIRE(both.listener()->bound_addresses().size() == 1);
  const std::string port = inet(both.listener()->bound_addresses()[0]).port;
  check_connection(both, InetAddress{.host = "127.0.0.1", .port = port});
  check_connection(both, InetAddress{.host = "::1", .port = port});

  auto only = listening("tcp:[::]:0,ipv4=off");
  FakeFdSource descriptors;
  auto target = prepare_outgoing(
      InetAddress{.host = "127.0.0.1", .port = inet(only.listener()->bound_addresses()[0]).port}, descriptors, {});
  REQUIRE(target.has_value());
  CHECK_FALSE(target->connect(*stop).has_value());
}

TEST_CASE("Listen.tries_ports_up_to_the_limit") {
  auto first = listening("tcp:127.0.0.1:0");
  const int taken = std::stoi(inet(first.listener()->bound_addresses()[0]).port);
  const std::string base = "tcp:127.0.0.1:" + std::to_string(taken);
  CHECK(listen_error(base) == "Failed to find an available port: Address already in use");
  CHECK(listen_error(base + ",to=" + std::to_string(taken)) ==
        "Failed to find an available port: Address already in use");
  if (taken > 65500) return;
  auto next = listening(base + ",to=" + std::to_string(taken + 30));
  const int got = std::stoi(inet(next.listener()->bound_addresses()[0]).port);
  CHECK(got > taken);
  CHECK(got <= taken + 30);
}

TEST_CASE("Listen.failures_have_the_texts_of_qemu") {
  CHECK(listen_error("tcp:192.0.2.1:0") == "Failed to bind socket: Cannot assign requested address");
  CHECK(listen_error("tcp::0,ipv4=off,ipv6=off") == "Cannot disable IPv4 and IPv6 at same time");
  CHECK(listen_error("unix:/nonexistent/x") == "Failed to bind socket to /nonexistent/x: No such file or directory");
  CHECK(listen_error("unix:/tmp") == "Failed to unlink socket /tmp: Is a directory");
  CHECK(listen_error("vsock:a:b") == "Failed to parse cid 'a'");
  CHECK(listen_error("file:/nonexistent") == "Could not open '/nonexistent': No such file or directory");
  CHECK(listen_error("fd:zz") == "File descriptor named 'zz' has not been found");
  CHECK(listen_error("fd:3x") == "Invalid file descriptor number '3x'");
  CHECK(listen_error("rdma:h:1") == "rdma:h:1 cannot carry a recovery: give another kind of address");
  CHECK(listen_error("exec:true", {.allow_exec = false}) ==
        "exec: is switched off in this daemon (--allow-exec=on allows it)");
}

TEST_CASE("Listen.unix_replaces_a_stale_socket_and_removes_its_own") {
  const ScratchDir dir;
  const std::string path = dir.file("s");
  {
    auto target = listening("unix:" + path);
    CHECK(std::get<UnixAddress>(target.listener()->bound_addresses()[0]).path == path);
    check_connection(target, UnixAddress{path});
    auto second = listening("unix:" + path);
    check_connection(second, UnixAddress{path});
    // The first does not remove what is the second's by now.
    { const IncomingTarget gone(std::move(target)); }
    CHECK(std::filesystem::exists(path));
  }
  CHECK_FALSE(std::filesystem::exists(path));
}

TEST_CASE("Listen.unix_leaves_other_files_alone") {
  const ScratchDir dir;
  const std::string path = dir.file("precious");
  std::ofstream(path) << "data";
  CHECK(listen_error("unix:" + path) == "Failed to unlink socket " + path + ": it is not a socket");
  CHECK(slurp(path) == "data");
}

TEST_CASE("Listen.unix_names_can_be_abstract") {
  const UnixAddress name{"migrationd-test-" + std::to_string(::getpid()), true, true};
  FakeFdSource descriptors;
  auto target = open_incoming(name, descriptors, {});
  REQUIRE(target.has_value());
  const auto& bound = std::get<UnixAddress>(target->listener()->bound_addresses()[0]);
  CHECK(bound.abstract);
  CHECK(bound.path == name.path);
  check_connection(*target, name);
}

TEST_CASE("Listen.accept_ends_with_the_stop") {
  for (const char* text : {"tcp:127.0.0.1:0", "tcp::0"}) {
    const auto stop = make_stop();
    auto target = listening(text);
    LateStop late(*stop);
    const auto channel = target.listener()->accept(*stop);
    late.check_prompt();
    REQUIRE_FALSE(channel.has_value());
    CHECK(channel.error().is_cancelled());
  }
}

TEST_CASE("Listen.accept_ready_never_waits") {
  const auto stop = make_stop();
  for (const char* text : {"tcp:127.0.0.1:0", "tcp::0"}) {
    auto target = listening(text);
    auto none = target.listener()->accept_ready(*stop);
    REQUIRE(none.has_value());
    CHECK(*none == nullptr);
    auto out =
        connect_to(InetAddress{.host = "127.0.0.1", .port = inet(target.listener()->bound_addresses()[0]).port}, *stop);
    pollfd polled{target.listener()->fd(), POLLIN, 0};
    REQUIRE(::poll(&polled, 1, 2000) == 1);
    auto in = target.listener()->accept_ready(*stop);
    REQUIRE(in.has_value());
    REQUIRE(*in != nullptr);
    CHECK((*in)->describe().find("127.0.0.1") != std::string::npos);
    check_talk(*out, **in);
  }
}

TEST_CASE("Listen.file_gives_its_channel_at_the_offset") {
  const auto stop = make_stop();
  const ScratchDir dir;
  const std::string path = dir.file("save");
  std::ofstream(path) << "0123QEVM";
  FakeFdSource descriptors;
  auto target = open_incoming(uri("file:" + path + ",offset=4"), descriptors, {});
  REQUIRE(target.has_value());
  CHECK(target->listener() == nullptr);
  auto channel = target->take_channel(*stop);
  REQUIRE(channel.has_value());
  CHECK(read_all(**channel) == "QEVM");
  CHECK_FALSE(target->take_channel(*stop).has_value());

  descriptors.sets["/dev/fdset/3"].push_back(UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC)));
  auto from_set = open_incoming(uri("file:/dev/fdset/3"), descriptors, {});
  REQUIRE(from_set.has_value());
  CHECK(descriptors.last_flags == O_RDONLY);
  channel = from_set->take_channel(*stop);
  REQUIRE(channel.has_value());
  CHECK(read_all(**channel) == "0123QEVM");
}

TEST_CASE("Listen.fd_takes_named_and_inherited_descriptors_only") {
  const auto stop = make_stop();
  const ScratchDir dir;
  const std::string path = dir.file("save");
  std::ofstream(path) << "QEVM";
  FakeFdSource descriptors;
  descriptors.named["n"] = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  auto named = open_incoming(uri("fd:n"), descriptors, {});
  REQUIRE(named.has_value());
  CHECK(read_all(**named->take_channel(*stop)) == "QEVM");

  const int number = ::open(path.c_str(), O_RDONLY);
  const std::string text = "fd:" + std::to_string(number);
  CHECK(listen_error(text) == "File descriptor " + std::to_string(number) + " was not inherited by this process");
  CHECK(listen_error("fd:0", {.inherited_fds = {0}}) == "File descriptor 0 was not inherited by this process");
  auto inherited = open_incoming(uri(text), descriptors, {.inherited_fds = {number}});
  REQUIRE(inherited.has_value());
  CHECK((::fcntl(number, F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(read_all(**inherited->take_channel(*stop)) == "QEVM");
  CHECK(listen_error(text, {.inherited_fds = {number}}) ==
        "File descriptor " + std::to_string(number) + " was not inherited by this process");
}

TEST_CASE("Listen.fd_leaves_an_inherited_listening_socket_alone") {
  const UniqueFd control(::socket(AF_INET, SOCK_STREAM, 0));
  REQUIRE(::listen(control.get(), 1) == 0);
  const std::string text = "fd:" + std::to_string(control.get());
  CHECK(listen_error(text, {.inherited_fds = {control.get()}}) ==
        text + ": the descriptor is not a connected stream socket");
  CHECK(::fcntl(control.get(), F_GETFD) >= 0);
}

TEST_CASE("Listen.exec_reads_the_command_s_output") {
  const auto stop = make_stop();
  FakeFdSource descriptors;
  auto target = open_incoming(uri("exec:printf QEVM"), descriptors, {});
  REQUIRE(target.has_value());
  auto channel = target->take_channel(*stop);
  REQUIRE(channel.has_value());
  CHECK(read_all(**channel) == "QEVM");

  auto silent = open_incoming(uri("exec:sleep 60"), descriptors, {});
  REQUIRE(silent.has_value());
  auto waiting = silent->take_channel(*stop);
  REQUIRE(waiting.has_value());
  LateStop late(*stop);
  char byte = 0;
  const iovec into{&byte, 1};
  const auto got = (*waiting)->read({&into, 1});
  late.check_prompt();
  REQUIRE_FALSE(got.has_value());
  CHECK(got.error().is_cancelled());
}

TEST_CASE("Listen.exec_child_has_only_three_descriptors_and_default_signals") {
  const auto stop = make_stop();
  FakeFdSource descriptors;
  const UniqueFd leaked(::open("/", O_RDONLY));  // deliberately without close-on-exec
  auto names = open_incoming(ExecAddress{{"/bin/ls", "/proc/self/fd"}}, descriptors, {});
  REQUIRE(names.has_value());
  // The fourth is the directory that ls reads.
  CHECK(read_all(**names->take_channel(*stop)) == "0\n1\n2\n3\n");
  auto signals = open_incoming(ExecAddress{{"/bin/grep", "SigIgn", "/proc/self/status"}}, descriptors, {});
  REQUIRE(signals.has_value());
  const std::string line = read_all(**signals->take_channel(*stop));
  REQUIRE(line.starts_with("SigIgn:\t"));
  // glibc ignores its two internal signals (32 and 33) in children; ours would be SIGPIPE, 13.
  CHECK((std::stoull(line.substr(8), nullptr, 16) & 0x7fffffff) == 0);
}

TEST_CASE("Listen.vsock_works_where_the_kernel_has_a_loopback") {
  FakeFdSource descriptors;
  auto target = open_incoming(VsockAddress{std::to_string(VMADDR_CID_LOCAL), "0"}, descriptors, {});
  if (!target) {
    CHECK(target.error().kind() == ErrorKind::io);
    WARN("skipped: " << target.error().text());
    return;
  }
  check_connection(*target, target->listener()->bound_addresses()[0]);
}

TEST_CASE("Listen.vsock_reports_the_port_it_was_given") {
  FakeFdSource descriptors;
  auto target = open_incoming(uri("vsock:4294967295:54321"), descriptors, {});
  if (!target) {
    WARN("skipped: " << target.error().text());
    return;
  }
  const auto& bound = std::get<VsockAddress>(target->listener()->bound_addresses()[0]);
  CHECK(bound.cid == "4294967295");
  CHECK(bound.port == "54321");
}
