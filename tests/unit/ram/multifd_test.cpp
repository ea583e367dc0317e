// SPDX-License-Identifier: Apache-2.0
// Both ends of multifd against each other, over real sockets; and channels that lie.
#include "protocol/stream/ram_record.hpp"
#include "ram/multifd_receiver.hpp"
#include "ram/page_scanner.hpp"
#include "ram/ram_section_reader.hpp"
#include "ram/run_pass.hpp"
#include "ram/sink_multifd.hpp"
#include "ram/store_plain.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/sampled.hpp"
#include "transports/descriptor_channel.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

using namespace migrationd;
using namespace migrationd::ram;
using namespace std::chrono_literals;
using stream::MultifdMethod;

namespace {

constexpr std::size_t pages = 1500;

RamMap two_blocks() {
  RamMap map;
  for (const auto& [name, count] : {std::pair{"pc.ram", pages}, std::pair{"pc.rom", std::size_t{40}}}) {
    auto block = RamBlock::create(name, count * page_size, page_size);
    REQUIRE(block.has_value());
    REQUIRE(map.add(std::move(*block)).has_value());
  }
  return map;
}

void write_page(RamMap& map, std::size_t block, std::size_t page, unsigned value) {
  std::memset(map.at(block).engine() + page * page_size, static_cast<int>(value), page_size);
}

// Data, zero pages that were written, and holes, in pieces of all sizes.
void fill(RamMap& map, unsigned seed) {
  std::mt19937 random(seed);
  for (std::size_t page = 0; page < pages;) {
    const std::size_t length = 1 + random() % 200;
    const unsigned kind = random() % 4;
    for (std::size_t i = page; i < std::min(pages, page + length); ++i)
      if (kind != 0) write_page(map, 0, i, kind == 1 ? 0 : 1 + random() % 255);
    page += length;
  }
  for (std::size_t page = 0; page < 40; page += 3) write_page(map, 1, page, 7);
}

bool equal(const RamMap& a, const RamMap& b) {
  for (std::size_t index = 0; index < a.size(); ++index)
    if (std::memcmp(a.at(index).engine(), b.at(index).engine(), a.at(index).length()) != 0) return false;
  return true;
}

using ChannelPtr = std::unique_ptr<transports::Channel>;

std::pair<ChannelPtr, ChannelPtr> connected(StopSource& left, StopSource& right) {
  int fds[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
  const auto channel = [](int fd, StopSource& stop) {
    return std::make_unique<transports::DescriptorChannel>(UniqueFd(fd), transports::DescriptorKind::socket, stop,
                                                           "test");
  };
  return {channel(fds[0], left), channel(fds[1], right)};
}

std::pair<ChannelPtr, ChannelPtr> connected_by_tcp(StopSource& stop) {
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* const plain = static_cast<sockaddr*>(static_cast<void*>(&address));
  REQUIRE((::bind(listener.get(), plain, size) == 0 && ::listen(listener.get(), 1) == 0));
  REQUIRE(::getsockname(listener.get(), plain, &size) == 0);
  UniqueFd near(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(near.get(), plain, size) == 0);
  const auto channel = [&stop](UniqueFd fd) {
    return std::make_unique<transports::DescriptorChannel>(std::move(fd), transports::DescriptorKind::socket, stop,
                                                           "test");
  };
  UniqueFd far(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  return {channel(std::move(near)), channel(std::move(far))};
}

// Catch2's assertions belong to the main thread: what other threads see is kept and looked at there.
bool read_hello(transports::Channel& channel, unsigned number) {
  std::array<std::byte, stream::multifd_hello_bytes> bytes{};
  for (std::size_t have = 0; have < bytes.size();) {
    const iovec piece{bytes.data() + have, bytes.size() - have};
    const auto got = channel.read({&piece, 1});
    if (!got || *got == 0) return false;
    have += *got;
  }
  const auto hello = stream::decode_multifd_hello(bytes);
  return hello && hello->channel == number;
}

// A destination whose main stream and channels the test writes itself.
struct Receiving {
  ThreadRoster roster;
  RamMap map = two_blocks();
  std::unique_ptr<StopSource> stop = StopSource::make().value();
  std::unique_ptr<StopSource> far_stop = StopSource::make().value();
  std::unique_ptr<StorePlain> store = StorePlain::make(map).value();
  ChannelPtr far_main;
  ChannelPtr main;
  std::vector<ChannelPtr> far;
  std::unique_ptr<transports::BufferedReader> reader;
  ReceiveCounters counters;
  std::unique_ptr<MultifdReceiver> multifd;
  std::unique_ptr<RamSectionReader> bodies;

  explicit Receiving(std::size_t channels, MultifdMethod method = MultifdMethod::none) {
    std::tie(far_main, main) = connected(*far_stop, *stop);
    std::vector<ChannelPtr> near(channels);
    far.resize(channels);
    for (std::size_t i = 0; i < channels; ++i) std::tie(far[i], near[i]) = connected(*far_stop, *stop);
    reader = std::make_unique<transports::BufferedReader>(*main);
    auto started = MultifdReceiver::start(std::move(near), method, map, *store, *stop, roster);
    REQUIRE(started.has_value());
    multifd = std::move(*started);
    bodies = std::make_unique<RamSectionReader>(*reader, map, *store, counters);
    bodies->meet_channels(*multifd);
  }
  ~Receiving() { multifd.reset(); }

  void say(std::size_t channel, ByteView bytes) const {
    const iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
    (void)far[channel]->write({&piece, 1});
  }
  void say_main(std::initializer_list<std::uint64_t> words) const {
    ByteWriter out;
    for (const std::uint64_t word : words) out.u64(word);
    const iovec piece{const_cast<std::byte*>(out.view().data()), out.size()};
    REQUIRE(bool(far_main->write({&piece, 1})));
  }
  // The text of what went wrong, whoever noticed; empty when nothing did within `limit`.
  std::string failure(std::chrono::milliseconds limit = 30000ms) const {
    const auto deadline = std::chrono::steady_clock::now() + limit;
    while (std::chrono::steady_clock::now() < deadline) {
      if (const auto error = multifd->failure()) return error->text();
      std::this_thread::sleep_for(1ms);
    }
    return {};
  }
};

// As a source counts them, over all channels.
std::uint64_t next_number() {
  static std::uint64_t last = 0;
  return ++last;
}

Bytes sync_packet() {
  Bytes out(stream::multifd_header_bytes);
  stream::encode_multifd_sync(std::span<std::byte, stream::multifd_header_bytes>(out), next_number());
  return out;
}

Bytes page_packet(std::string_view block, std::vector<std::uint64_t> offsets, unsigned value) {
  Bytes out(stream::multifd_header_bytes);
  stream::encode_multifd_pages(
      std::span<std::byte, stream::multifd_header_bytes>(out),
      {MultifdMethod::none, block, offsets.size(), offsets, offsets.size() * page_size, next_number()});
  out.resize(out.size() + offsets.size() * page_size, static_cast<std::byte>(value));
  return out;
}

constexpr std::uint64_t flush = stream::ram_flag::multifd_flush;
constexpr std::uint64_t eos = stream::ram_flag::eos;

}  // namespace

TEST_CASE("Multifd.memory_arrives_whole_over_any_number_of_channels") {
  const auto channels = GENERATE(std::size_t{1}, std::size_t{3}, std::size_t{16});
  const auto method = GENERATE(MultifdMethod::none, MultifdMethod::zlib, MultifdMethod::zstd);
  const auto zeros = GENERATE(MultifdZeros::none, MultifdZeros::in_main_stream, MultifdZeros::in_packets);
  const bool per_section = GENERATE(false, true);
  const bool fresh = GENERATE(true, false);
  static Combinations combinations(7);
  if (combinations.pass_over()) return;

  RamMap from = two_blocks();
  fill(from, 3);
  Receiving to(0);  // its own channels are not used
  to.multifd.reset();
  if (!fresh) {
    for (std::size_t page = 0; page < pages; ++page) write_page(to.map, 0, page, 99);
    to.store = StorePlain::make(to.map).value();
  }
  const auto stop = StopSource::make().value();
  auto [main_out, main_in] = connected(*stop, *to.stop);
  std::vector<ChannelPtr> out(channels);
  std::vector<ChannelPtr> in(channels);
  for (std::size_t i = 0; i < channels; ++i) std::tie(out[i], in[i]) = connected(*stop, *to.stop);

  transports::BufferedWriter writer(*main_out);
  SendCounters sent;
  ThreadRoster roster;
  auto sender =
      MultifdSender::start(std::move(out), {}, {method, 1, zeros == MultifdZeros::in_packets}, from, *stop, roster);
  REQUIRE(sender.has_value());
  SinkMultifd sink(from, std::make_unique<SinkStream>(from, writer, *stop, sent, SinkStream::Options{}), writer,
                   **sender, *stop, sent, {zeros, false, per_section});
  auto scanner = PageScanner::of(from);
  REQUIRE(scanner.has_value());

  std::string trouble;
  std::thread destination([&, main_channel = main_in.get()] {
    for (std::size_t i = 0; i < channels; ++i)
      if (!read_hello(*in[i], static_cast<unsigned>(i))) trouble = "a wrong hello";
    transports::BufferedReader reader(*main_channel);
    auto receiver = MultifdReceiver::start(std::move(in), method, to.map, *to.store, *to.stop, to.roster);
    RamSectionReader bodies(reader, to.map, *to.store, to.counters);
    bodies.meet_channels(**receiver);
    for (const bool last : {false, false, false, true}) {
      if (last) (*receiver)->begin_last_section();
      if (const auto read = bodies.read_body(); !read) {
        trouble = (*receiver)->failure() ? (*receiver)->failure()->text() : read.error().text();
        return;
      }
    }
    if (const auto done = to.store->finish(); !done) trouble = done.error().text();
  });

  const auto section = [&](bool pass_ends) {
    if (pass_ends) CHECK(bool(sink.mark_pass_end()));
    CHECK(bool(sink.end_body()));
    CHECK(bool(writer.flush()));
  };
  REQUIRE(bool(scanner->begin_first_pass()));
  section(true);
  // A part that ends in the middle of the pass, then the rest of it.
  CHECK(bool(run_pass(*scanner, sink, *stop, {50ms, 1})));
  section(false);
  CHECK(bool(run_whole_pass(*scanner, sink, *stop)));
  section(true);
  for (std::size_t page = 100; page < 400; ++page) write_page(from, 0, page, page % 3 == 0 ? 0 : 200);
  REQUIRE(bool(scanner->begin_first_pass()));
  CHECK(bool(run_whole_pass(*scanner, sink, *stop)));
  section(true);
  destination.join();
  CHECK(trouble.empty());
  CHECK(equal(from, to.map));
  CHECK(sink.bytes_sent() > 0);
  if (zeros == MultifdZeros::none) CHECK((*sender)->zero_pages() == 0);
  CHECK((*sender)->bytes_expected() >= (*sender)->bytes_sent());
}

TEST_CASE("Multifd.holes_are_not_looked_at_and_stay_holes") {
  const bool zeros_in_packets = GENERATE(true, false);
  RamMap from = two_blocks();
  RamMap to = two_blocks();
  write_page(from, 0, 77, 5);
  const auto allocated = from.at(0).allocated_bytes().value();
  const auto stop = StopSource::make().value();
  auto store = StorePlain::make(to).value();
  std::vector<ChannelPtr> out(1);
  std::vector<ChannelPtr> in(1);
  std::tie(out[0], in[0]) = connected(*stop, *stop);
  ThreadRoster roster;
  auto sender =
      MultifdSender::start(std::move(out), {}, {MultifdMethod::none, 1, zeros_in_packets}, from, *stop, roster);
  REQUIRE(sender.has_value());
  REQUIRE(read_hello(*in[0], 0));
  auto receiver = MultifdReceiver::start(std::move(in), MultifdMethod::none, to, *store, *stop, roster);
  REQUIRE(receiver.has_value());
  MultifdJob job;
  job.data = {77 * page_size};
  for (std::size_t page = 100; page < 200; ++page) job.holes.push_back(page * page_size);
  REQUIRE(bool((*sender)->hand_over(job)));
  REQUIRE(bool((*sender)->synchronise()));
  REQUIRE(bool((*receiver)->at_flush()));
  CHECK((*receiver)->normal_pages() == (zeros_in_packets ? 1 : 101));
  CHECK((*receiver)->zero_pages() == (zeros_in_packets ? 100 : 0));
  CHECK(from.at(0).allocated_bytes().value() == allocated);
  if (zeros_in_packets) CHECK(to.at(0).allocated_bytes().value() == allocated);
  CHECK(equal(from, to));
}

TEST_CASE("Multifd.a_barrier_holds_both_sides") {
  Receiving to(2);
  to.say(0, sync_packet());
  to.say(0, page_packet("pc.ram", {0}, 2));
  to.say(1, page_packet("pc.ram", {0}, 1));
  std::atomic<bool> met{false};
  bool read = false;
  to.say_main({flush, eos});
  std::thread mover([&] {
    read = bool(to.bodies->read_body());
    met = true;
  });
  for (int i = 0; i < 30000 && to.multifd->normal_pages() < 1; ++i) std::this_thread::sleep_for(1ms);
  std::this_thread::sleep_for(50ms);
  CHECK_FALSE(met);
  // The page behind the first channel's SYNC is not taken before the second channel has come.
  CHECK(to.multifd->normal_pages() == 1);
  to.say(1, sync_packet());
  mover.join();
  CHECK(read);
  for (int i = 0; i < 30000 && to.multifd->normal_pages() < 2; ++i) std::this_thread::sleep_for(1ms);
  to.multifd.reset();
  CHECK(to.map.at(0).engine()[0] == std::byte{2});
}

TEST_CASE("Multifd.a_packet_that_comes_twice_is_noticed_where_the_source_counts") {
  Receiving to(1);
  const Bytes page = page_packet("pc.ram", {0}, 1);
  Bytes sync = sync_packet();
  SECTION("a newer source") {
    to.say(0, sync);
    to.say_main({flush, eos});
    CHECK(bool(to.bodies->read_body()));
    to.say(0, page);
    CHECK(to.failure().find("received packet number ") != std::string::npos);
  }
  SECTION("7.2 repeats its numbers") {
    store_be(sync.data() + 12, std::uint32_t{stream::multifd_packet_pages});
    for (const Bytes& bytes : {sync, page, page}) to.say(0, bytes);
    to.say_main({flush, eos});
    CHECK(bool(to.bodies->read_body()));
    for (int i = 0; i < 30000 && to.multifd->normal_pages() < 2; ++i) std::this_thread::sleep_for(1ms);
    CHECK(to.multifd->normal_pages() == 2);
  }
}

TEST_CASE("Multifd.a_synchronisation_that_never_comes_ends_the_wait_when_nothing_else_comes_either") {
  Receiving to(2);
  to.multifd->be_patient_for(300ms);
  to.say(0, sync_packet());
  to.say_main({flush});
  bool read = true;
  std::string text;
  const auto begun = std::chrono::steady_clock::now();
  std::thread mover([&] {
    const auto outcome = to.bodies->read_body();
    read = bool(outcome);
    if (!outcome) text = outcome.error().text();
  });
  // While there is something on the awaited channel it waits.
  for (int i = 0; i < 8; ++i) {
    to.say(1, page_packet("pc.ram", {0}, 1));
    std::this_thread::sleep_for(100ms);
  }
  mover.join();
  CHECK_FALSE(read);
  CHECK(text.find("multifd channel 1: no synchronisation point within 300 ms") != std::string::npos);
  CHECK(std::chrono::steady_clock::now() - begun > 800ms);
}

TEST_CASE("Multifd.a_stream_without_flush_synchronises_at_each_end_of_a_section") {
  Receiving to(1);
  to.say_main({eos, eos, eos});
  for (int section = 0; section < 3; ++section) {
    to.say(0, page_packet("pc.ram", {page_size}, static_cast<unsigned>(section)));
    to.say(0, sync_packet());
    if (section == 2) to.multifd->begin_last_section();
    CHECK(bool(to.bodies->read_body()));
    CHECK(to.map.at(0).engine()[page_size] == static_cast<std::byte>(section));
  }
  // And then none may come.
  to.say_main({flush, eos});
  CHECK_FALSE(bool(to.bodies->read_body()));
}

TEST_CASE("Multifd.the_last_section_needs_its_flush") {
  Receiving to(1);
  to.say(0, sync_packet());
  to.say_main({flush, eos, eos, eos});
  CHECK(bool(to.bodies->read_body()));
  CHECK(bool(to.bodies->read_body()));
  to.multifd->begin_last_section();
  const auto read = to.bodies->read_body();
  REQUIRE(!read.has_value());
  CHECK(read.error().text() == "the last part of the memory ends without a multifd synchronisation point");
}

TEST_CASE("Multifd.pages_behind_the_last_barrier_are_no_success") {
  Receiving to(1);
  to.say(0, sync_packet());
  to.say_main({flush, eos});
  to.multifd->begin_last_section();
  SECTION("already there") {
    to.say_main({});
    CHECK(bool(to.multifd->at_flush()));
    to.say(0, page_packet("pc.ram", {0}, 1));
    for (int i = 0; i < 30000 && to.multifd->normal_pages() < 1; ++i) std::this_thread::sleep_for(1ms);
    const auto end = to.multifd->at_end_of_section();
    REQUIRE(!end.has_value());
    CHECK(end.error().text() ==
          "multifd channel 0: pages or a synchronisation point behind the last one of the main stream");
  }
  SECTION("later") {
    CHECK(bool(to.bodies->read_body()));
    const auto late = GENERATE(true, false);
    to.say(0, late ? page_packet("pc.ram", {0}, 1) : sync_packet());
    CHECK(to.failure().find("behind the last one") != std::string::npos);
    CHECK(to.stop->requested());
  }
  SECTION("an empty packet and an end there are well") {
    CHECK(bool(to.bodies->read_body()));
    Bytes empty = sync_packet();
    store_be(empty.data() + 8, std::uint32_t{0});
    to.say(0, empty);
    to.far[0]->shutdown();
    CHECK(to.failure(100ms).empty());
    CHECK_FALSE(to.stop->requested());
  }
}

TEST_CASE("Multifd.a_channel_that_ends_too_early_fails_at_once") {
  Receiving to(2);
  SECTION("between packets") {
    to.far[1]->shutdown();
    CHECK(to.failure() == "multifd channel 1: the source ended it before the migration was over");
  }
  SECTION("in a header") {
    to.say(1, ByteView(sync_packet()).first(12));
    to.far[1]->shutdown();
    CHECK(to.failure() == "multifd channel 1: Unexpected end-of-file before all data were read");
  }
  SECTION("in a payload") {
    const Bytes packet = page_packet("pc.ram", {0, page_size}, 1);
    to.say(1, ByteView(packet).first(packet.size() - 1));
    to.far[1]->shutdown();
    CHECK(to.failure() == "multifd channel 1: Unexpected end-of-file before all data were read");
  }
  CHECK(to.stop->requested());
  // The mover, wherever it waits, learns of it.
  CHECK_FALSE(bool(to.bodies->read_body()));
}

TEST_CASE("Multifd.a_channel_that_ends_in_the_last_section_without_its_sync_is_missed") {
  Receiving to(2);
  to.say_main({flush, eos, flush, eos});
  for (const std::size_t channel : {0, 1}) to.say(channel, sync_packet());
  CHECK(bool(to.bodies->read_body()));
  to.multifd->begin_last_section();
  to.say(0, sync_packet());
  to.far[1]->shutdown();
  const auto read = to.bodies->read_body();
  REQUIRE(!read.has_value());
  CHECK(read.error().text() == "multifd channel 1: ended without the synchronisation that the main stream waits for");
}

TEST_CASE("Multifd.bad_packets_name_channel_and_cause_and_touch_nothing") {
  Receiving to(2);
  const auto [packet, text] =
      GENERATE(std::pair{page_packet("nosuch", {0}, 1), "unknown ram block nosuch"},
               std::pair{page_packet("pc.ram", {0, pages * page_size}, 1), "block 'pc.ram'"},
               std::pair{page_packet("pc.ram", {0, ~std::uint64_t{4095}}, 1), "block 'pc.ram'"},
               std::pair{page_packet("pc.ram", {0, page_size + 8}, 1), "is not at a page's start"});
  to.say(1, packet);
  const std::string failure = to.failure();
  CHECK(failure.starts_with("multifd channel 1: "));
  CHECK(failure.find(text) != std::string::npos);
  CHECK(to.map.at(0).allocated_bytes().value() == 0);
}

TEST_CASE("Multifd.a_broken_channel_of_the_source_raises_the_stop_with_its_cause") {
  RamMap from = two_blocks();
  for (std::size_t page = 0; page < pages; ++page) write_page(from, 0, page, 1 + page % 250);
  const auto stop = StopSource::make().value();
  const auto far_stop = StopSource::make().value();
  std::vector<ChannelPtr> out(2);
  std::vector<ChannelPtr> in(2);
  for (std::size_t i = 0; i < 2; ++i) std::tie(out[i], in[i]) = connected(*stop, *far_stop);
  ThreadRoster roster;
  auto sender = MultifdSender::start(std::move(out), {}, {}, from, *stop, roster);
  REQUIRE(sender.has_value());
  in[1].reset();
  Result<void> result;
  for (int i = 0; i < 1000 && result; ++i) {
    MultifdJob job;
    for (std::size_t page = 0; page < 128; ++page) job.data.push_back(page * page_size);
    result = (*sender)->hand_over(job);
  }
  REQUIRE(!result.has_value());
  CHECK(result.error().is_cancelled());
  REQUIRE((*sender)->failure());
  CHECK((*sender)->failure()->text() == "multifd channel 1: Unable to write to socket: Broken pipe");
  CHECK(stop->requested());
}

TEST_CASE("Multifd.the_stop_ends_every_wait") {
  RamMap from = two_blocks();
  for (std::size_t page = 0; page < pages; ++page) write_page(from, 0, page, 1 + page % 250);
  Receiving to(2);
  to.say(0, sync_packet());
  to.say_main({flush});
  bool read = true;
  std::thread destination([&] { read = bool(to.bodies->read_body()); });
  const auto stop = StopSource::make().value();
  const auto far_stop = StopSource::make().value();
  auto [out, in] = connected(*stop, *far_stop);
  std::vector<ChannelPtr> channels;
  channels.push_back(std::move(out));
  ThreadRoster roster;
  auto sender = MultifdSender::start(std::move(channels), {}, {}, from, *stop, roster);
  REQUIRE(sender.has_value());
  Result<void> result;
  std::thread source([&] {
    while (result) {
      MultifdJob job;
      job.data.assign(128, 0);
      result = (*sender)->hand_over(job);
    }
  });
  std::this_thread::sleep_for(30ms);
  to.stop->request();
  stop->request();
  destination.join();
  source.join();
  CHECK_FALSE(read);
  CHECK(result.error().is_cancelled());
  CHECK_FALSE((*sender)->failure());
  CHECK_FALSE(to.multifd->failure());
}

TEST_CASE("Multifd.without_a_copy_into_the_kernel_all_arrives_and_each_barrier_waits_for_it") {
  RamMap from = two_blocks();
  RamMap to = two_blocks();
  const auto stop = StopSource::make().value();
  auto store = StorePlain::make(to).value();
  std::vector<ChannelPtr> out(1);
  std::vector<ChannelPtr> in(1);
  std::tie(out[0], in[0]) = connected_by_tcp(*stop);
  ThreadRoster roster;
  MultifdSenderOptions options;
  options.zero_copy = true;
  auto sender = MultifdSender::start(std::move(out), {}, options, from, *stop, roster);
  REQUIRE(sender.has_value());
  REQUIRE(read_hello(*in[0], 0));
  auto receiver = MultifdReceiver::start(std::move(in), MultifdMethod::none, to, *store, *stop, roster);
  REQUIRE(receiver.has_value());
  REQUIRE(bool((*sender)->synchronise()));
  REQUIRE(bool((*receiver)->at_flush()));
  CHECK((*sender)->missed_zero_copy() == 0);  // nothing was to be saved
  for (unsigned round = 1; round < 4; ++round) {
    for (std::size_t first = 0; first + 100 < pages; first += 100) {
      MultifdJob job;
      for (std::size_t page = first; page < first + 100; page += 1 + round % 2) {
        write_page(from, 0, page, page % 7 == 0 ? 0 : round);
        job.data.push_back(page * page_size);
      }
      REQUIRE(bool((*sender)->hand_over(job)));
    }
    REQUIRE(bool((*sender)->synchronise()));
    REQUIRE(bool((*receiver)->at_flush()));
    CHECK(equal(from, to));
    // Loopback's kernel copies and says so.
    CHECK((*sender)->missed_zero_copy() == round);
  }
}

TEST_CASE("Multifd.threads_are_listed_under_qemus_names") {
  RamMap map = two_blocks();
  const auto stop = StopSource::make().value();
  std::vector<ChannelPtr> out(3);
  std::vector<ChannelPtr> in(3);
  for (std::size_t i = 0; i < 3; ++i) std::tie(out[i], in[i]) = connected(*stop, *stop);
  ThreadRoster roster;
  auto sender = MultifdSender::start(std::move(out), {}, {}, map, *stop, roster);
  REQUIRE(sender.has_value());
  std::vector<std::string> names;
  for (int i = 0; i < 30000 && names.size() < 3; ++i) {
    std::this_thread::sleep_for(1ms);
    names.clear();
    for (const auto& entry : roster.list()) names.push_back(entry.name);
  }
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{"mig/src/send_0", "mig/src/send_1", "mig/src/send_2"});
  sender->reset();
  CHECK(roster.list().empty());
}
