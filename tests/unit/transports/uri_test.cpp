// SPDX-License-Identifier: Apache-2.0
#include "tests/unit/catch.hpp"
#include "transports/address.hpp"

using namespace migrationd;
using namespace migrationd::transports;

namespace {

template <class T>
T parsed(std::string_view uri) {
  auto address = parse_uri(uri);
  INFO(uri);
  REQUIRE(address.has_value());
  REQUIRE(std::holds_alternative<T>(*address));
  return std::get<T>(*address);
}

std::string refusal(std::string_view uri) {
  const auto address = parse_uri(uri);
  INFO(uri);
  REQUIRE_FALSE(address.has_value());
  CHECK(address.error().kind() == ErrorKind::plan);
  return address.error().text();
}

}  // namespace

TEST_CASE("Uri.reads_tcp_with_its_options") {
  const auto plain = parsed<InetAddress>("tcp:192.0.2.1:4444");
  CHECK(plain.host == "192.0.2.1");
  CHECK(plain.port == "4444");
  CHECK_FALSE(plain.to.has_value());
  CHECK_FALSE(plain.ipv4.has_value());
  const auto full = parsed<InetAddress>("tcp:[fe80::1]:http,to=90,ipv4=off,ipv6,keep-alive=on,mptcp,unknown=7");
  CHECK(full.host == "fe80::1");
  CHECK(full.port == "http");
  CHECK(full.to == 90);
  CHECK(full.ipv4 == false);
  CHECK(full.ipv6 == true);
  CHECK(full.keep_alive);
  CHECK(full.mptcp);
  CHECK(parsed<InetAddress>("tcp::4444").host.empty());
  // As in QEMU: the rest up to a comma is the port, resolution fails later.
  CHECK(parsed<InetAddress>("tcp:127.0.0.1:0:3").port == "0:3");
}

TEST_CASE("Uri.tcp_errors_have_the_texts_of_qemu") {
  CHECK(refusal("tcp:") == "error parsing address ''");
  CHECK(refusal("tcp:1") == "error parsing address '1'");
  CHECK(refusal("tcp:a,to=3") == "error parsing address 'a,to=3'");
  CHECK(refusal("tcp:" + std::string(65, 'h') + ":1") == "error parsing address '" + std::string(65, 'h') + ":1'");
  CHECK(refusal("tcp::") == "error parsing port in address ':'");
  CHECK(refusal("tcp::,to=3") == "error parsing port in address ':,to=3'");
  CHECK(refusal("tcp:[::1:1") == "error parsing IPv6 address '[::1:1'");
  CHECK(refusal("tcp:[::1]:") == "error parsing IPv6 address '[::1]:'");
  CHECK(refusal("tcp:[::1]x:3") == "error parsing IPv6 address '[::1]x:3'");
  CHECK(refusal("tcp:h:1,to=x") == "error parsing to= argument");
  CHECK(refusal("tcp:h:1,to=") == "error parsing to= argument");
  CHECK(refusal("tcp:h:1,to=70000") == "error parsing to= argument");
  CHECK(refusal("tcp:h:1,to=5x") == "error parsing to= argument");
  CHECK(refusal("tcp:h:1,ipv4=maybe") == "error parsing 'ipv4' flag '=maybe'");
  CHECK(refusal("tcp:h:1,ipv4=maybe,ipv6") == "error parsing 'ipv4' flag '=maybe,ipv6'");
  CHECK(refusal("tcp:h:1,ipv6on") == "error parsing 'ipv6' flag 'on'");
  CHECK(refusal("tcp:h:1,keep-alive=x") == "error parsing 'keep-alive' flag '=x'");
}

TEST_CASE("Uri.reads_the_other_schemes") {
  CHECK(parsed<UnixAddress>("unix:/run/a,b=c").path == "/run/a,b=c");
  CHECK(parsed<VsockAddress>("vsock:3:1234").cid == "3");
  CHECK(parsed<VsockAddress>("vsock:a:b").port == "b");
  CHECK(parsed<FdAddress>("fd:7").name == "7");
  CHECK(parsed<ExecAddress>("exec:cat > a").argv == std::vector<std::string>{"/bin/sh", "-c", "cat > a"});
  CHECK(parsed<ExecAddress>("exec:").argv.back().empty());
  CHECK(parsed<RdmaAddress>("rdma:host:1").inet.port == "1");
}

TEST_CASE("Uri.other_errors_have_the_texts_of_qemu") {
  CHECK(refusal("unix:") == "invalid Unix socket address");
  CHECK(refusal("fd:") == "invalid file descriptor address");
  CHECK(refusal("vsock:") == "error parsing address ''");
  CHECK(refusal("vsock:1") == "error parsing address '1'");
  CHECK(refusal("vsock::1") == "error parsing address ':1'");
  CHECK(refusal("vsock:3:77,foo") == "trailing characters in address '3:77,foo'");
  CHECK(refusal("rdma:h") == "error parsing address 'h'");
  CHECK(refusal("defer") == "unknown migration protocol: defer");
  CHECK(refusal("TCP:h:1") == "unknown migration protocol: TCP:h:1");
  CHECK(refusal("") == "unknown migration protocol: ");
  CHECK(refusal("foo\n:bar") == "unknown migration protocol: foo\\x0a:bar");
}

TEST_CASE("Uri.file_offsets_are_sizes") {
  CHECK(parsed<FileAddress>("file:/save").offset == 0);
  CHECK(parsed<FileAddress>("file:").path.empty());
  const auto cut = parsed<FileAddress>("file:a,b,offset=4096");
  CHECK(cut.path == "a,b");
  CHECK(cut.offset == 4096);
  CHECK(parsed<FileAddress>("file:x,offset=0x1000").offset == 4096);
  CHECK(parsed<FileAddress>("file:x,offset=1.5k").offset == 1536);
  CHECK(parsed<FileAddress>("file:x,offset=2M").offset == 2u << 20);
  CHECK(parsed<FileAddress>("file:x,offset=7B").offset == 7);
  CHECK(parsed<FileAddress>("file:x,offset=7E").offset == std::uint64_t{7} << 60);
}

TEST_CASE("Uri.file_offset_errors_have_the_texts_of_qemu") {
  for (const char* bad : {"abc", "", "1k,foo", "1.5", "0x10k", "0x", "+1", " 1", "1kk", "1,offset=2"})
    CHECK(refusal(std::string("file:x,offset=") + bad) ==
          std::string("file URI has bad offset ") + bad + ": Invalid argument");
  for (const char* bad : {"-1", "8E", "99999999999999999999", "0xfffffffffffffffff", "16E"})
    CHECK(refusal(std::string("file:x,offset=") + bad) ==
          std::string("file URI has bad offset ") + bad + ": Numerical result out of range");
}

TEST_CASE("Uri.addresses_print_as_they_were_written") {
  for (const char* uri : {"tcp:192.0.2.1:4444", "tcp:[::1]:1,to=9", "unix:/run/a.sock", "vsock:1:2", "fd:name",
                          "exec:cat > 'a b'", "file:/save", "rdma:h:1"}) {
    const auto address = parse_uri(uri);
    REQUIRE(address.has_value());
    CHECK(to_string(*address) == uri);
  }
  CHECK(to_string(FileAddress{"a\nb", 4096}) == "file:a\\x0ab,offset=0x1000");
  CHECK(to_string(ExecAddress{{"/bin/cat", "x"}}) == "exec:/bin/cat x");
}
