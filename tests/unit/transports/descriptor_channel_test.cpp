// SPDX-License-Identifier: Apache-2.0
#include "transports/descriptor_channel.hpp"

#include "tests/unit/transports/support.hpp"

#include <netinet/in.h>
#include <sys/mman.h>

using namespace migrationd;
using namespace migrationd::testing;
using namespace migrationd::transports;

namespace {

struct Pipe {
  UniqueFd read;
  UniqueFd write;
};

Pipe make_pipe() {
  int fds[2];
  REQUIRE(::pipe2(fds, O_CLOEXEC) == 0);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

Bytes pattern(std::size_t size) {
  Bytes out(size);
  for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<std::byte>(i ^ (i >> 8) ^ (i >> 16));
  return out;
}

// Odd sizes, empty entries, more of them than IOV_MAX.
std::vector<iovec> in_pieces(Bytes& data) {
  std::vector<iovec> out;
  std::size_t at = 0;
  std::size_t size = 1;
  while (at < data.size()) {
    size = size * 5 % 4099;
    const std::size_t count = std::min(size, data.size() - at);
    out.push_back({data.data() + at, count});
    out.push_back({data.data() + at, 0});
    at += count;
  }
  return out;
}

std::unique_ptr<Channel> channel_of(UniqueFd fd, StopSource& stop) {
  const auto kind = kind_of(fd.get());
  REQUIRE(kind.has_value());
  return std::make_unique<DescriptorChannel>(std::move(fd), *kind, stop, "test");
}

// Writes on another thread, reads here with scattered buffers of odd sizes.
void check_transfer(Channel& from, Channel& to, std::size_t size) {
  Bytes data = pattern(size);
  const auto pieces = in_pieces(data);
  bool written = false;  // Catch's macros are for the main thread
  std::thread writer([&] { written = bool(from.write(pieces)) && bool(from.finish_writing()); });
  Bytes got;
  char first[7];
  char second[9000];
  const iovec into[2] = {{first, sizeof first}, {second, sizeof second}};
  while (true) {
    const auto count = to.read(into);
    REQUIRE(count.has_value());
    if (*count == 0) break;
    const auto head = std::min(*count, sizeof first);
    const ByteView parts[2] = {std::as_bytes(std::span(first, head)), std::as_bytes(std::span(second, *count - head))};
    for (const ByteView part : parts) got.insert(got.end(), part.begin(), part.end());
  }
  writer.join();
  CHECK(written);
  CHECK(got == data);
}

}  // namespace

TEST_CASE("DescriptorChannel.moves_everything_over_a_socket") {
  const auto stop = make_stop();
  auto pair = make_channel_pair(*stop, *stop);
  check_transfer(*pair.left, *pair.right, 5'000'000);
  CHECK(pair.left->bidirectional());
  CHECK_FALSE(pair.left->is_file());
}

TEST_CASE("DescriptorChannel.moves_everything_over_a_pipe_without_touching_its_flags") {
  const auto stop = make_stop();
  Pipe pipe = make_pipe();
  auto outside = pipe.write.duplicate();
  REQUIRE(outside.has_value());
  const auto writer = channel_of(std::move(pipe.write), *stop);
  const auto reader = channel_of(std::move(pipe.read), *stop);
  CHECK((::fcntl(outside->get(), F_GETFL) & O_NONBLOCK) == 0);
  outside->reset();
  check_transfer(*writer, *reader, 3'000'000);
  CHECK_FALSE(writer->bidirectional());
}

TEST_CASE("DescriptorChannel.moves_everything_over_pipes_it_cannot_open_anew") {
  using Tactic = DescriptorChannel::PipeTactic;
  for (const Tactic tactic : {Tactic::nowait, Tactic::after_poll}) {
    const auto stop = make_stop();
    Pipe pipe = make_pipe();
    DescriptorChannel writer(std::move(pipe.write), DescriptorKind::pipe, *stop, "test");
    DescriptorChannel reader(std::move(pipe.read), DescriptorKind::pipe, *stop, "test");
    writer.force(tactic);
    reader.force(tactic);
    check_transfer(writer, reader, 2'000'000);

    // Full, and then the stop: a write that blocked would hang here.
    Pipe full = make_pipe();
    const auto late_stop = make_stop();
    DescriptorChannel stuck(std::move(full.write), DescriptorKind::pipe, *late_stop, "test");
    stuck.force(tactic);
    Bytes data = pattern(3'000'000);
    const auto pieces = in_pieces(data);
    LateStop late(*late_stop);
    const auto written = stuck.write(pieces);
    late.check_prompt();
    REQUIRE_FALSE(bool(written));
    CHECK(written.error().is_cancelled());
  }
}

TEST_CASE("DescriptorChannel.moves_everything_through_a_file") {
  const auto stop = make_stop();
  const ScratchDir dir;
  Bytes data = pattern(2'000'000);
  const auto pieces = in_pieces(data);
  {
    auto out = channel_of(UniqueFd(::open(dir.file("f").c_str(), O_WRONLY | O_CREAT, 0600)), *stop);
    REQUIRE(bool(out->write(pieces)));
    CHECK(out->is_file());
    CHECK(bool(out->finish_writing()));
    CHECK(bool(out->sync_to_disk()));
    CHECK(out->readable_fd() == -1);
  }
  auto in = channel_of(UniqueFd(::open(dir.file("f").c_str(), O_RDONLY)), *stop);
  CHECK(as_bytes(read_all(*in)).size() == data.size());
}

TEST_CASE("DescriptorChannel.reading_ends_with_the_stop") {
  const auto stop = make_stop();
  const auto other = make_stop();
  char byte = 0;
  const iovec into{&byte, 1};
  SECTION("socket") {
    auto pair = make_channel_pair(*stop, *other);
    LateStop late(*stop);
    const auto got = pair.left->read({&into, 1});
    late.check_prompt();
    REQUIRE_FALSE(got.has_value());
    CHECK(got.error().is_cancelled());
    CHECK(pair.left->write({&into, 1}).error().is_cancelled());
  }
  SECTION("pipe") {
    Pipe pipe = make_pipe();
    auto reader = channel_of(std::move(pipe.read), *stop);
    LateStop late(*stop);
    const auto got = reader->read({&into, 1});
    late.check_prompt();
    REQUIRE_FALSE(got.has_value());
    CHECK(got.error().is_cancelled());
  }
}

TEST_CASE("DescriptorChannel.writing_to_a_full_peer_ends_with_the_stop") {
  const auto stop = make_stop();
  const auto other = make_stop();
  Bytes data = pattern(8'000'000);
  const iovec from{data.data(), data.size()};
  SECTION("socket") {
    auto pair = make_channel_pair(*stop, *other);
    LateStop late(*stop);
    const auto written = pair.left->write({&from, 1});
    late.check_prompt();
    REQUIRE_FALSE(bool(written));
    CHECK(written.error().is_cancelled());
  }
  SECTION("pipe") {
    Pipe pipe = make_pipe();
    auto writer = channel_of(std::move(pipe.write), *stop);
    LateStop late(*stop);
    const auto written = writer->write({&from, 1});
    late.check_prompt();
    REQUIRE_FALSE(bool(written));
    CHECK(written.error().is_cancelled());
  }
}

TEST_CASE("DescriptorChannel.tells_a_peer_that_is_gone") {
  const auto stop = make_stop();
  Bytes data = pattern(4'000'000);
  const iovec from{data.data(), data.size()};
  SECTION("socket") {
    auto pair = make_channel_pair(*stop, *stop);
    pair.right.reset();
    const auto written = pair.left->write({&from, 1});
    REQUIRE_FALSE(bool(written));
    CHECK(written.error().kind() == ErrorKind::io);
    CHECK(written.error().text() == "Unable to write to socket: Broken pipe");
    CHECK(read_all(*pair.left).empty());
  }
  SECTION("socket closed while the writer waits") {
    auto pair = make_channel_pair(*stop, *stop);
    std::thread closer([&] {
      std::this_thread::sleep_for(30ms);
      pair.right.reset();
    });
    const auto written = pair.left->write({&from, 1});
    closer.join();
    REQUIRE_FALSE(bool(written));
    CHECK((written.error().sys_errno() == EPIPE || written.error().sys_errno() == ECONNRESET));
  }
  SECTION("pipe") {
    Pipe pipe = make_pipe();
    auto writer = channel_of(std::move(pipe.write), *stop);
    pipe.read.reset();
    const auto written = writer->write({&from, 1});
    REQUIRE_FALSE(bool(written));
    CHECK(written.error().text() == "Unable to write to file: Broken pipe");
  }
  SECTION("reading from what is only written") {
    Pipe pipe = make_pipe();
    auto writer = channel_of(std::move(pipe.write), *stop);
    char byte = 0;
    const iovec into{&byte, 1};
    stop->request();
    CHECK(writer->read({&into, 1}).error().is_cancelled());
  }
}

TEST_CASE("DescriptorChannel.reading_a_file_opened_for_writing_says_bad_descriptor") {
  const auto stop = make_stop();
  const ScratchDir dir;
  auto out = channel_of(UniqueFd(::open(dir.file("f").c_str(), O_WRONLY | O_CREAT, 0600)), *stop);
  char byte = 0;
  const iovec into{&byte, 1};
  const auto got = out->read({&into, 1});
  REQUIRE_FALSE(got.has_value());
  CHECK(got.error().text() == "Unable to read from file: Bad file descriptor");
}

TEST_CASE("DescriptorChannel.shutdown_wakes_a_reader_from_another_thread") {
  const auto stop = make_stop();
  auto pair = make_channel_pair(*stop, *stop);
  std::thread other([&] {
    std::this_thread::sleep_for(20ms);
    pair.left->shutdown();
    pair.left->shutdown();
  });
  char byte = 0;
  const iovec into{&byte, 1};
  const auto got = pair.left->read({&into, 1});
  other.join();
  REQUIRE(got.has_value());
  CHECK(*got == 0);
}

TEST_CASE("DescriptorChannel.finish_writing_leaves_the_way_back_open") {
  const auto stop = make_stop();
  auto pair = make_channel_pair(*stop, *stop);
  REQUIRE(bool(write_text(*pair.left, "there")));
  REQUIRE(bool(pair.left->finish_writing()));
  CHECK(read_all(*pair.right) == "there");
  REQUIRE(bool(write_text(*pair.right, "back")));
  REQUIRE(bool(pair.right->finish_writing()));
  CHECK(read_all(*pair.left) == "back");
}

TEST_CASE("DescriptorChannel.refuses_what_carries_no_stream") {
  const UniqueFd directory(::open("/", O_RDONLY | O_DIRECTORY));
  CHECK_FALSE(kind_of(directory.get()).has_value());
  const UniqueFd datagrams(::socket(AF_UNIX, SOCK_DGRAM, 0));
  CHECK_FALSE(kind_of(datagrams.get()).has_value());
  CHECK_FALSE(kind_of(-1).has_value());
  const UniqueFd listening(::socket(AF_INET, SOCK_STREAM, 0));
  REQUIRE(::listen(listening.get(), 1) == 0);
  CHECK_FALSE(kind_of(listening.get()).has_value());
}

TEST_CASE("DescriptorChannel.tells_a_full_disk") {
  const auto stop = make_stop();
  const UniqueFd full(::open("/dev/full", O_WRONLY));
  if (!full) {
    WARN("skipped: no /dev/full here");
    return;
  }
  auto duplicate = full.duplicate();
  REQUIRE(duplicate.has_value());
  const DescriptorKind as_file = DescriptorKind::file;
  DescriptorChannel channel(std::move(*duplicate), as_file, *stop, "test");
  const auto written = write_text(channel, "text");
  REQUIRE_FALSE(bool(written));
  CHECK(written.error().text() == "Unable to write to file: No space left on device");
}
