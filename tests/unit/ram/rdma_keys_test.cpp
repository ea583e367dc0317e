// SPDX-License-Identifier: Apache-2.0
// Keys are asked for ahead of the pages that need them.
#include "ram/rdma_channel.hpp"
#include "ram/sink_rdma.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/ram/rdma_fixture.hpp"

#include <algorithm>
#include <cstring>
#include <thread>

using namespace migrationd;
using namespace migrationd::ram;
using namespace migrationd::rdma;
using namespace std::chrono_literals;
using namespace migrationd::testing;

namespace {

// A source's sink, and a destination of QEMU's manners that is played: a chunk a request, an answer, READY.
struct Asked {
  explicit Asked(bool large = false) {
    RdmaConnections connections;
    connections.main = std::move(connection.source);
    connections.large_requests = large;
    channel = RdmaChannel::make(RdmaSide::source, std::move(connections)).value();
    writer = std::make_unique<transports::BufferedWriter>(*channel);
    sink = std::make_unique<SinkRdma>(here, *writer, channel->connections(), *connection.stop, counters,
                                      SinkRdma::Options{});
    for (std::size_t page = 0; page < here.at(0).pages(); ++page)
      std::memset(here.at(0).engine() + page * page_size, static_cast<int>(page % 255 + 1), page_size);
  }

  // Everything of block 0 in batches of `pages`, in one body.
  void send_all(std::uint64_t pages) {
    REQUIRE(sink->write_block_list().has_value());
    REQUIRE(sink->end_body().has_value());
    for (std::uint64_t first = 0; first < here.at(0).pages(); first += pages) {
      PageBatch batch;
      batch.reset(0, BatchKind::data);
      batch.add({first, std::min(pages, here.at(0).pages() - first)});
      const auto sent = sink->send(batch);
      if (!sent) FAIL(sent.error().text());
    }
    const auto ended = sink->end_body();
    if (!ended) FAIL(ended.error().text());
    REQUIRE(writer->flush().has_value());
  }

  ControlMessage next() {
    const auto message = connection.destination->receive();
    REQUIRE(message.has_value());
    REQUIRE(message->has_value());
    return **message;
  }
  void tell_blocks() {
    while (next().type != ControlType::ram_blocks_request) {
    }
    ByteWriter out;
    for (std::size_t index = 0; index < there.size(); ++index) {
      encode(out, RemoteBlock{reinterpret_cast<std::uint64_t>(there.at(index).engine()), offset_of(index),
                              there.at(index).length(), 0});
    }
    REQUIRE(connection.destination->answer(ControlType::ram_blocks_result, 1, out.view()).has_value());
  }
  void answer(std::span<const ChunkRequest> requests) {
    ByteWriter out;
    for (const ChunkRequest& request : requests) {
      const std::uint64_t offset = request.where - offset_of(request.block);
      RamBlock& block = there.at(request.block);
      const std::size_t length = std::min<std::uint64_t>(chunk_bytes, block.length() - offset);
      regions.push_back(connection.destination->link()
                            .domain()
                            ->register_memory({block.engine() + offset, length}, transports::RdmaAccess::write_remote)
                            .value());
      encode(out, RegisterResult{regions.back()->remote_key(), reinterpret_cast<std::uint64_t>(block.engine())});
    }
    REQUIRE(connection.destination
                ->answer(ControlType::register_result, static_cast<std::uint32_t>(requests.size()), out.view())
                .has_value());
  }
  static std::uint64_t offset_of(std::size_t index) { return (index + 1) << 32; }
  // The last byte of a chunk of block 0 is what it is here. The adapter writes it beside us.
  bool has_come(std::uint64_t chunk) const {
    const std::uint64_t last = std::min((chunk + 1) * chunk_bytes, there.at(0).length()) - 1;
    return __atomic_load_n(reinterpret_cast<const char*>(there.at(0).engine() + last), __ATOMIC_ACQUIRE) ==
           __atomic_load_n(reinterpret_cast<const char*>(here.at(0).engine() + last), __ATOMIC_RELAXED);
  }
  void until_come(std::uint64_t chunk) const {
    const auto deadline = std::chrono::steady_clock::now() + 30s;
    while (!has_come(chunk) && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(1ms);
    CHECK(has_come(chunk));
  }

  Connection connection;
  RamMap here = map_of({2000, 8});
  RamMap there = map_of({2000, 8});
  SendCounters counters;
  std::unique_ptr<RdmaChannel> channel;
  std::unique_ptr<transports::BufferedWriter> writer;
  std::unique_ptr<SinkRdma> sink;
  std::vector<std::unique_ptr<transports::RdmaRegion>> regions;
};

}  // namespace

TEST_CASE("SinkRdma.writes_the_pages_of_a_key_while_the_next_one_is_asked_for") {
  bool large = false;
  std::vector<std::size_t> sizes(8, 1);
  SECTION("one chunk a request, as QEMU takes it") {}
  SECTION("all that a batch needs") {
    large = true;
    sizes = {3, 3, 2};
  }
  Asked asked(large);
  std::thread source([&] { asked.send_all(700); });
  asked.tell_blocks();
  std::vector<std::size_t> seen;
  std::uint64_t next_chunk = 0;
  while (true) {
    const ControlMessage message = asked.next();
    if (message.type == ControlType::register_finished && !seen.empty()) break;
    if (message.type != ControlType::register_request) continue;
    // Before this one is answered, the pages of those before it come: also over the end of a batch.
    for (std::uint64_t chunk = 0; chunk < next_chunk; ++chunk) asked.until_come(chunk);
    const auto requests = decode_chunk_requests(message);
    seen.push_back(requests.size());
    for (const ChunkRequest& request : requests)
      CHECK(request.where == Asked::offset_of(0) + next_chunk++ * chunk_bytes);
    asked.answer(requests);
  }
  // Of the stream, behind REGISTER FINISHED.
  asked.next();
  source.join();
  CHECK(seen == sizes);
  CHECK(std::memcmp(asked.there.at(0).engine(), asked.here.at(0).engine(), asked.here.at(0).length()) == 0);
  CHECK(asked.counters.normal_pages.get() == 2000);
  // Nothing could be written behind the first.
  CHECK(asked.channel->connections().key_requests == sizes.size());
  CHECK(asked.channel->connections().bare_key_requests == 1);
}
