// SPDX-License-Identifier: Apache-2.0
// Packets and sealed state files, which both sides of the guest protocol use.
#include "guest/packet_io.hpp"
#include "guest/sealed_state.hpp"
#include "tests/unit/catch.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <string>

namespace migrationd::guest {
namespace {

std::size_t open_descriptors() {
  std::size_t count = 0;
  DIR* const directory = ::opendir("/proc/self/fd");
  REQUIRE(directory != nullptr);
  while (::readdir(directory) != nullptr) ++count;
  ::closedir(directory);
  return count;
}

struct Pair {
  UniqueFd near;
  UniqueFd far;
  Pair() {
    int ends[2];
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    near.reset(ends[0]);
    far.reset(ends[1]);
  }
  std::string fault() {
    auto got = try_receive_packet(near.get(), "the guest");
    REQUIRE_FALSE(got.has_value());
    return got.error().text();
  }
};

Bytes stop_packet() { return packet(static_cast<std::uint16_t>(Type::stop), 7, Empty{}); }

}  // namespace

TEST_CASE("PacketIo.carries_a_packet_and_says_when_there_is_none") {
  Pair pair;
  REQUIRE_FALSE(try_receive_packet(pair.near.get(), "the guest")->has_value());
  REQUIRE(*try_send_packet(pair.far.get(), stop_packet(), {}, "the daemon"));
  auto got = try_receive_packet(pair.near.get(), "the guest");
  REQUIRE(got.has_value());
  CHECK((*got)->header.serial == 7);
  CHECK((*got)->fds.empty());
}

TEST_CASE("PacketIo.a_full_socket_is_no_error") {
  Pair pair;
  const Bytes sent = stop_packet();
  bool taken = true;
  for (int i = 0; i < 100000 && taken; ++i) taken = *try_send_packet(pair.far.get(), sent, {}, "the daemon");
  CHECK_FALSE(taken);
}

TEST_CASE("PacketIo.closes_what_came_with_a_packet_that_is_none") {
  Pair pair;
  const std::size_t before = open_descriptors();
  const std::array fds{pair.far.get(), pair.far.get()};
  REQUIRE(*try_send_packet(pair.far.get(), stop_packet(), fds, "the daemon"));
  CHECK(pair.fault() == "STOP: came with 2 descriptors, not 0 to 0");
  REQUIRE(*try_send_packet(pair.far.get(), Bytes(3), std::span(fds).first(1), "the daemon"));
  CHECK(pair.fault().find("less than a header") != std::string::npos);
  CHECK(open_descriptors() == before);
}

TEST_CASE("PacketIo.names_who_hung_up") {
  Pair pair;
  pair.far.reset();
  CHECK(pair.fault() == "the guest hung up");
  auto sent = try_send_packet(pair.near.get(), stop_packet(), {}, "the guest");
  REQUIRE_FALSE(sent.has_value());
  CHECK(sent.error().kind() == ErrorKind::peer);
}

TEST_CASE("SealedState.comes_back_as_it_was_and_from_sealed_memory_only") {
  const Bytes bytes(100, std::byte{3});
  const auto fd = make_state(bytes);
  REQUIRE(fd.has_value());
  CHECK(read_state(fd->get(), 100).value() == bytes);
  CHECK_FALSE(read_state(fd->get(), 101).has_value());
  CHECK_FALSE(read_state(fd->get(), 99).has_value());
  const UniqueFd unsealed(::memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::ftruncate(unsealed.get(), 100) == 0);
  CHECK_FALSE(read_state(unsealed.get(), 100).has_value());
  // What can still be written, however long it stays, is not what was saved.
  REQUIRE(::fcntl(unsealed.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
  CHECK_FALSE(read_state(unsealed.get(), 100).has_value());
  CHECK_FALSE(read_state(UniqueFd(::open("/dev/zero", O_RDONLY | O_CLOEXEC)).get(), 100).has_value());
}

}  // namespace migrationd::guest
