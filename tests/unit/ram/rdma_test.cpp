// SPDX-License-Identifier: Apache-2.0
// One side of an RDMA migration against a peer that is not honest, over a device in memory.
#include "protocol/stream/ram_record.hpp"
#include "ram/rdma_inbox.hpp"
#include "ram/rdma_receiver.hpp"
#include "ram/sink_rdma.hpp"
#include "ram/store_plain.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/ram/rdma_fixture.hpp"

#include <atomic>
#include <cstring>
#include <thread>

using namespace migrationd;
using namespace migrationd::ram;
using namespace migrationd::rdma;
using namespace std::chrono_literals;
using namespace migrationd::testing;

namespace {

// A destination at a HOOK, with blocks of 600 and 8 pages; the source is played.
struct Hooked {
  explicit Hooked(bool pin_all = false) {
    RdmaConnections connections;
    connections.main = std::move(connection.destination);
    connections.pin_all = pin_all;
    channel = RdmaChannel::make(RdmaSide::destination, std::move(connections)).value();
    store = StorePlain::make(map).value();
    receiver = RdmaReceiver::make(*channel, map, *store, counters, {"block0", "block1"}).value();
  }

  // The destination's result, once `play` has done its part.
  template <class Play>
  Result<void> serve(Play play) {
    Result<void> result;
    std::thread destination([&] {
      result = receiver->serve();
      if (!result) channel->say_failure({});
    });
    play(*connection.source);
    destination.join();
    return result;
  }

  // What the destination says to a request behind RAM_BLOCKS_REQUEST.
  template <class Encode>
  std::string refusal(ControlType type, std::uint32_t repeat, Encode encode_payload) {
    const auto result = serve([&](RdmaControl& source) {
      const auto told = blocks(source);
      ByteWriter out;
      encode_payload(out, told);
      const ByteView payload = out.view();
      const auto sent = source.send(type, repeat, {&payload, 1});
      if (!sent) FAIL(sent.error().text());
      // It says ERROR, or takes the next message.
      [[maybe_unused]] const auto next = source.send(ControlType::register_finished);
    });
    return result ? "taken" : result.error().text();
  }

  static std::vector<RemoteBlock> blocks(RdmaControl& source) {
    const auto answer = source.ask(ControlType::ram_blocks_request, 1, {});
    if (!answer) FAIL(answer.error().text());
    return decode_remote_blocks(*answer);
  }

  Connection connection;
  RamMap map = map_of({600, 8});
  std::unique_ptr<RdmaChannel> channel;
  std::unique_ptr<StorePlain> store;
  ReceiveCounters counters;
  std::unique_ptr<RdmaReceiver> receiver;
};

std::string refused_register(ChunkRequest request, bool relative = true) {
  Hooked hooked;
  return hooked.refusal(ControlType::register_request, 1, [&](ByteWriter& out, const std::vector<RemoteBlock>& blocks) {
    if (relative) request.where += blocks[request.block < 2 ? request.block : 0].offset;
    encode(out, request);
  });
}

}  // namespace

TEST_CASE("RdmaReceiver.registers_chunks_and_takes_what_is_written_there") {
  Hooked hooked;
  std::memset(hooked.map.at(0).engine(), 0, 600 * page_size);
  Bytes data(chunk_bytes, std::byte{0x77});
  const auto region =
      hooked.connection.source->link().domain()->register_memory(data, transports::RdmaAccess::read_local).value();
  const auto result = hooked.serve([&](RdmaControl& source) {
    const auto blocks = Hooked::blocks(source);
    REQUIRE(blocks.size() == 2);
    CHECK(blocks[0].length == 600 * page_size);
    CHECK(blocks[0].key == 0);
    ByteWriter out;
    encode(out, ChunkRequest{blocks[0].offset + chunk_bytes, 0, 0});
    encode(out, ChunkRequest{blocks[1].offset, 1, 0});
    const auto answer = source.ask(ControlType::register_request, 2, out.view());
    REQUIRE(answer.has_value());
    const auto results = decode_register_results(*answer);
    REQUIRE(results.size() == 2);
    CHECK(results[0].block_address == blocks[0].address);
    CHECK(results[1].block_address == blocks[1].address);
    const auto again = source.ask(ControlType::register_request, 2, out.view());
    REQUIRE(again.has_value());
    CHECK(decode_register_results(*again) == results);
    auto posted = source.link().post_write({data.data(), page_size, region->local_key()},
                                           {blocks[0].address + chunk_bytes + page_size, results[0].key}, 1, true);
    REQUIRE(posted.has_value());
    REQUIRE(source.send(ControlType::register_finished).has_value());
  });
  if (!result) FAIL(result.error().text());
  CHECK(std::memcmp(hooked.map.at(0).engine() + chunk_bytes + page_size, data.data(), page_size) == 0);
  CHECK(hooked.map.at(0).engine()[chunk_bytes] == std::byte{0});
}

TEST_CASE("RdmaReceiver.gives_a_key_per_block_when_all_is_pinned") {
  Hooked hooked(true);
  const auto result = hooked.serve([&](RdmaControl& source) {
    const auto blocks = Hooked::blocks(source);
    CHECK(blocks[0].key != 0);
    CHECK(blocks[1].key != 0);
    CHECK(blocks[0].key != blocks[1].key);
    REQUIRE(source.send(ControlType::register_finished).has_value());
  });
  CHECK(bool(result));
}

TEST_CASE("RdmaReceiver.a_registration_can_be_given_up_and_its_key_is_dead") {
  Hooked hooked;
  Bytes data(page_size);
  const auto region =
      hooked.connection.source->link().domain()->register_memory(data, transports::RdmaAccess::read_local).value();
  const auto result = hooked.serve([&](RdmaControl& source) {
    const auto blocks = Hooked::blocks(source);
    ByteWriter out;
    encode(out, ChunkRequest{blocks[0].offset, 0, 2});
    const auto answer = source.ask(ControlType::register_request, 1, out.view());
    REQUIRE(answer.has_value());
    const std::uint32_t key = decode_register_results(*answer)[0].key;
    out.clear();
    encode(out, ChunkRequest{0, 0, 2});
    REQUIRE(source.ask(ControlType::unregister_request, 1, out.view()).has_value());
    const auto posted =
        source.link().post_write({data.data(), page_size, region->local_key()}, {blocks[0].address, key}, 1, true);
    REQUIRE_FALSE(posted.has_value());
    CHECK(posted.error().text() == "remote access error");
  });
  CHECK_FALSE(bool(result));
}

TEST_CASE("RdmaReceiver.refuses_every_number_beyond_its_memory") {
  CHECK(refused_register({0, 0, 2}) == "taken");
  CHECK(contains(refused_register({0, 0, 3}), "'register' of chunk 0 and 3 more in block 0, which has 3"));
  CHECK(contains(refused_register({0, 2, 0}), "'register' bad block index 2 (vs 2)"));
  CHECK(contains(refused_register({600 * page_size, 0, 0}), "bad register address for block 0"));
  CHECK(contains(refused_register({0, 0, 0}, false), "bad register address for block 0"));
  CHECK(contains(refused_register({0, 0, ~std::uint64_t{0}}), "'register' of chunk"));

  const auto zeros = [](std::uint32_t block, std::uint64_t offset, std::uint64_t length, std::uint32_t value) {
    Hooked hooked;
    return hooked.refusal(ControlType::compress, 1, [&](ByteWriter& out, const std::vector<RemoteBlock>& blocks) {
      encode(out, Compress{value, block, blocks[block < 2 ? block : 0].offset + offset, length});
    });
  };
  CHECK(zeros(1, 0, 8 * page_size, 0) == "taken");
  CHECK(contains(zeros(1, page_size, 8 * page_size, 0), "'compress' of 32768 bytes"));
  CHECK(contains(zeros(2, 0, page_size, 0), "'compress' bad block index 2"));
  CHECK(contains(zeros(0, 0, page_size, 9), "non-zero (9) value"));

  Hooked hooked;
  CHECK(contains(hooked.refusal(ControlType::unregister_request, 1,
                                [](ByteWriter& out, const auto&) {
                                  encode(out, ChunkRequest{1, 0, 0});
                                }),
                 "never registered"));
}

TEST_CASE("RdmaReceiver.registered_memory_has_a_bound") {
  Hooked hooked;
  // Each range from its chunk to the end: 600 + 344 + 88 pages of 608, and again 8.
  CHECK(hooked.refusal(ControlType::register_request, 3, [](ByteWriter& out, const std::vector<RemoteBlock>& blocks) {
    for (std::uint64_t chunk = 0; chunk < 3; ++chunk)
      encode(out, ChunkRequest{blocks[0].offset + chunk * chunk_bytes, 0, 2 - chunk});
  }) == "taken");
  Hooked greedy;
  CHECK(contains(greedy.refusal(ControlType::register_request, 2,
                                [](ByteWriter& out, const std::vector<RemoteBlock>& blocks) {
                                  encode(out, ChunkRequest{blocks[0].offset, 0, 2});
                                  encode(out, ChunkRequest{blocks[0].offset, 0, 1});
                                }),
                 "registered for 3 chunks, and now for 2"));
}

TEST_CASE("RdmaReceiver.wants_the_blocks_asked_for_first_and_once") {
  Hooked hooked;
  const auto early =
      hooked.serve([](RdmaControl& source) { REQUIRE(source.send(ControlType::register_finished).has_value()); });
  REQUIRE_FALSE(bool(early));
  CHECK(contains(early.error().text(), "before the blocks were asked for"));
  Hooked twice;
  CHECK(
      contains(twice.refusal(ControlType::ram_blocks_request, 1, [](ByteWriter&, const auto&) {}), "asked for twice"));
  Hooked stream;
  CHECK(contains(stream.refusal(ControlType::qemu_file, 1, [](ByteWriter& out, const auto&) { out.u8(1); }),
                 "Unknown control message QEMU FILE"));
}

TEST_CASE("RdmaControl.a_peer_that_is_never_ready_has_so_much_time") {
  Connection connection({.ready = 30ms});
  const auto sent = connection.source->send(ControlType::register_finished);
  REQUIRE_FALSE(bool(sent));
  CHECK(sent.error().kind() == ErrorKind::peer);
  CHECK(contains(sent.error().text(), "no READY within 30 ms"));
}

TEST_CASE("RdmaControl.a_peer_that_does_not_answer_has_so_much_time") {
  Connection connection({.answer = 30ms});
  REQUIRE(connection.destination->ask_for_message().has_value());
  const auto answer = connection.source->ask(ControlType::ram_blocks_request, 1, {});
  REQUIRE_FALSE(answer.has_value());
  CHECK(contains(answer.error().text(), "no RAM BLOCKS RESULT within 30 ms"));
}

TEST_CASE("RdmaControl.silence_is_filled_with_a_look_whether_the_peer_is_there") {
  Connection connection({.silence = 5ms});
  REQUIRE(connection.destination->ask_for_message().has_value());
  std::thread later([&] {
    while (connection.destination->link().counters().writes == 0) std::this_thread::sleep_for(1ms);
    REQUIRE(connection.source->send(ControlType::register_finished).has_value());
  });
  const auto message = connection.destination->receive();
  later.join();
  REQUIRE(message.has_value());
  REQUIRE(message->has_value());
  CHECK((*message)->type == ControlType::register_finished);
}

TEST_CASE("RdmaControl.the_stop_ends_every_wait") {
  Connection connection;
  std::thread stopper([&] { connection.stop->request(); });
  const auto received = connection.destination->receive();
  stopper.join();
  REQUIRE_FALSE(received.has_value());
  CHECK(received.error().is_cancelled());
}

TEST_CASE("RdmaControl.the_peers_end_is_the_end_of_the_stream_for_a_reader") {
  Connection connection;
  RdmaConnections connections;
  connections.main = std::move(connection.destination);
  const auto channel = RdmaChannel::make(RdmaSide::destination, std::move(connections)).value();
  std::thread source([&] {
    const std::byte word[3] = {std::byte{1}, std::byte{2}, std::byte{3}};
    REQUIRE(connection.source->send(ControlType::qemu_file, ByteView(word)).has_value());
    REQUIRE(connection.source->finish().has_value());
    connection.source->disconnect();
  });
  std::byte got[2] = {};
  const iovec into{got, sizeof got};
  CHECK(*channel->read({&into, 1}) == 2);
  CHECK(*channel->read({&into, 1}) == 1);
  CHECK(got[0] == std::byte{3});
  CHECK(*channel->read({&into, 1}) == 0);
  source.join();
}

namespace {

// A source whose return path nobody reads, and the destination that writes on it.
struct ReturnPath {
  explicit ReturnPath(RdmaPatience patience = {}, bool ours = true)
      : connection(patience, ours ? 0 : 1), other(patience) {
    RdmaConnections connections;
    connections.main = std::move(other.source);
    connections.return_path = std::move(connection.source);
    connections.large_requests = ours;
    source = RdmaChannel::make(RdmaSide::source, std::move(connections)).value();
  }
  // The destination takes the first bytes of the stream.
  void begin() {
    REQUIRE(other.destination->ask_for_message().has_value());
    std::byte header = {};
    const iovec first{&header, 1};
    REQUIRE(source->write({&first, 1}).has_value());
  }
  // As a destination writes: until it has arrived.
  Result<void> say(std::size_t bytes, std::uint8_t value) {
    const Bytes word(bytes, std::byte{value});
    const ByteView view(word);
    MD_CHECK(connection.destination->send(ControlType::qemu_file, 0, {&view, 1}));
    return connection.destination->finish();
  }
  Connection connection;
  Connection other;
  std::unique_ptr<RdmaChannel> source;
};

}  // namespace

TEST_CASE("RdmaInbox.keeps_what_the_destination_says_while_nobody_reads") {
  ReturnPath path({.ready = 30s});
  path.begin();
  for (std::uint8_t value = 1; value <= 100; ++value) {
    const auto said = path.say(3, value);
    if (!said) FAIL(said.error().text());
  }
  // All that was said is there after the end, too.
  path.connection.destination->disconnect();
  std::byte got[2] = {};
  const iovec into{got, sizeof got};
  for (std::size_t at = 0; at < 300;) {
    const auto read = path.source->read({&into, 1});
    REQUIRE(read.has_value());
    REQUIRE(*read > 0);
    for (std::size_t i = 0; i < *read; ++i, ++at) REQUIRE(got[i] == std::byte(at / 3 + 1));
  }
  CHECK(*path.source->read({&into, 1}) == 0);
}

TEST_CASE("RdmaInbox.says_nothing_before_the_destination_has_read_from_us") {
  ReturnPath path({.ready = 30s});
  // Long enough for one that does.
  std::this_thread::sleep_for(20ms);
  CHECK(path.connection.destination->link().counters().receives == 0);
  path.begin();
  const auto said = path.say(3, 1);
  if (!said) FAIL(said.error().text());
}

TEST_CASE("RdmaInbox.never_says_ready_twice_to_a_destination_that_begins_without_it") {
  ReturnPath path({.ready = 30s}, false);
  path.begin();
  std::this_thread::sleep_for(20ms);
  RdmaControl& destination = *path.connection.destination;
  CHECK(destination.link().counters().receives == 0);
  const Bytes word(3, std::byte{1});
  // As QEMU's: nobody has said READY.
  REQUIRE(destination.answer(ControlType::qemu_file, 0, word).has_value());
  const auto said = path.say(3, 2);
  if (!said) FAIL(said.error().text());
  std::byte got[6] = {};
  for (std::size_t at = 0; at < sizeof got;) {
    const iovec into{got + at, sizeof got - at};
    const auto read = path.source->read({&into, 1});
    REQUIRE(read.has_value());
    at += *read;
  }
  // One for each message.
  CHECK(destination.link().counters().receives <= 2);
}

TEST_CASE("RdmaInbox.ends_with_the_channel_also_when_nothing_was_said") {
  ReturnPath path;
  std::byte got = {};
  const iovec into{&got, 1};
  std::thread reader([&] { [[maybe_unused]] const auto read = path.source->read({&into, 1}); });
  path.source->shutdown();
  reader.join();
}

TEST_CASE("RdmaInbox.has_a_bound_and_goes_on_below_it") {
  constexpr std::size_t piece = std::size_t{1} << 15;
  ReturnPath path({.ready = 30s});
  path.begin();
  for (std::size_t taken = 0; taken < RdmaInbox::most_unread; taken += piece) {
    const auto said = path.say(piece, 7);
    if (!said) FAIL(said.error().text());
  }
  std::atomic<bool> more{false};
  Result<void> said;
  std::thread destination([&] {
    said = path.say(piece, 8);
    more = true;
  });
  // Long enough for an inbox without a bound.
  std::this_thread::sleep_for(50ms);
  CHECK_FALSE(more);
  Bytes got(piece);
  const iovec into{got.data(), got.size()};
  CHECK(*path.source->read({&into, 1}) == piece);
  destination.join();
  if (!said) FAIL(said.error().text());
}

TEST_CASE("RdmaControl.what_came_before_the_peer_gave_up_is_told_first") {
  Connection connection;
  REQUIRE(connection.source->ask_for_message().has_value());
  const Bytes word(3, std::byte{9});
  const ByteView view(word);
  REQUIRE(connection.destination->send(ControlType::qemu_file, 0, {&view, 1}).has_value());
  connection.destination->say_error();
  const auto message = connection.source->receive();
  REQUIRE(message.has_value());
  REQUIRE(message->has_value());
  CHECK((*message)->payload.size() == 3);
  for (int times = 0; times < 2; ++times) {
    const auto next = connection.source->receive();
    REQUIRE_FALSE(next.has_value());
    CHECK(contains(next.error().text(), "the peer gave up"));
  }
}

TEST_CASE("RdmaInbox.any_other_message_on_the_return_path_is_an_error") {
  ReturnPath path;
  path.begin();
  REQUIRE(path.connection.destination->send(ControlType::register_finished).has_value());
  std::byte got = {};
  const iovec into{&got, 1};
  const auto read = path.source->read({&into, 1});
  REQUIRE_FALSE(read.has_value());
  CHECK(contains(read.error().text(), "Was expecting a QEMU FILE"));
}

namespace {

// The source's answers from a destination that is played.
Result<void> told(const std::vector<RemoteBlock>& blocks) {
  Connection connection;
  RamMap map = map_of({600, 8});
  RdmaConnections connections;
  connections.main = std::move(connection.source);
  const auto channel = RdmaChannel::make(RdmaSide::source, std::move(connections)).value();
  transports::BufferedWriter writer(*channel);
  SendCounters counters;
  SinkRdma sink(map, writer, channel->connections(), *connection.stop, counters, {});
  Result<void> result;
  std::thread source([&] { result = sink.write_block_list(); });
  RdmaControl& destination = *connection.destination;
  while (true) {
    const auto message = destination.receive();
    REQUIRE(message.has_value());
    REQUIRE(message->has_value());
    if ((*message)->type == ControlType::ram_blocks_request) break;
  }
  ByteWriter out;
  for (const RemoteBlock& block : blocks) encode(out, block);
  REQUIRE(destination.answer(ControlType::ram_blocks_result, 1, out.view()).has_value());
  [[maybe_unused]] const auto next = destination.ask_for_message();
  source.join();
  return result;
}

}  // namespace

TEST_CASE("SinkRdma.compares_the_destinations_blocks_with_its_own") {
  const RemoteBlock first{0x7f0000000000, std::uint64_t{1} << 32, 600 * page_size, 0};
  const RemoteBlock second{0x7f1000000000, std::uint64_t{2} << 32, 8 * page_size, 0};
  CHECK(bool(told({first, second})));
  const auto text = [](const std::vector<RemoteBlock>& blocks) {
    const auto result = told(blocks);
    return result ? "taken" : result.error().text();
  };
  CHECK(contains(text({first}), "ram blocks mismatch (Number of blocks 2 vs 1)"));
  CHECK(contains(text({first, second, second}), "ram blocks mismatch (Number of blocks 2 vs 3)"));
  CHECK(contains(text({second, first}), "Block block0/0 has a different length 2457600 vs 32768"));
  RemoteBlock wild = first;
  wild.address = ~std::uint64_t{0} - page_size;
  CHECK(contains(text({wild, second}), "beyond the end of the address space"));
}
