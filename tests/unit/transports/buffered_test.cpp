// SPDX-License-Identifier: Apache-2.0
#include "transports/buffered.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/transports/channels.hpp"

#include <numeric>

using namespace migrationd;
using namespace migrationd::transports;
using migrationd::testing::MemoryChannel;

namespace {

Bytes counting(std::size_t size) {
  Bytes out(size);
  for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<std::byte>(i * 7 + (i >> 8));
  return out;
}

bool same(ByteView a, ByteView b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }

}  // namespace

TEST_CASE("BufferedReader.shows_at_least_what_was_asked_for") {
  const Bytes data = counting(1000);
  for (const std::size_t step : {1u, 3u, 64u, 1000u}) {
    MemoryChannel channel(data);
    channel.largest_read = step;
    BufferedReader reader(channel, 64);
    std::size_t at = 0;
    while (at + 10 <= data.size()) {
      const auto view = reader.peek(10);
      REQUIRE(view.has_value());
      REQUIRE(view->size() >= 10);
      REQUIRE(same(view->first(10), ByteView(data).subspan(at, 10)));
      reader.consume(7);
      at += 7;
      REQUIRE(reader.position() == at);
    }
    CHECK(reader.total_read() >= at);
  }
}

TEST_CASE("BufferedReader.reads_across_and_past_its_buffer") {
  const Bytes data = counting(10000);
  for (const std::size_t step : {1u, 5u, 100u, 4096u, 20000u}) {
    MemoryChannel channel(data);
    channel.largest_read = step;
    BufferedReader reader(channel, 256);
    Bytes got;
    std::size_t size = 1;
    while (got.size() < data.size()) {
      Bytes piece(std::min(size, data.size() - got.size()));
      REQUIRE(bool(reader.read_exact(piece)));
      got.insert(got.end(), piece.begin(), piece.end());
      size = size * 3 % 1009 + 1;
    }
    CHECK(got == data);
    const auto end = reader.at_end();
    REQUIRE(end.has_value());
    CHECK(*end);
    CHECK(reader.total_read() == data.size());
  }
}

TEST_CASE("BufferedReader.takes_a_page_and_the_following_headers_in_one_call") {
  MemoryChannel channel(counting(4096 + 100));
  BufferedReader reader(channel, 512);
  Bytes page(4096);
  REQUIRE(bool(reader.read_exact(page)));
  CHECK(channel.calls == 1);
  CHECK(reader.buffered().size() == 100);
}

TEST_CASE("BufferedReader.tells_a_cut_stream_from_its_end_and_from_a_broken_channel") {
  MemoryChannel channel(counting(5));
  BufferedReader reader(channel, 64);
  const auto cut = reader.peek(8);
  REQUIRE_FALSE(cut.has_value());
  CHECK(cut.error().kind() == ErrorKind::wire);
  CHECK(cut.error().text() == "stream ends too early (needs 8 bytes, has 5)");
  CHECK(reader.buffered().size() == 5);
  auto end = reader.at_end();
  REQUIRE(end.has_value());
  CHECK_FALSE(*end);
  Bytes more(6);
  const auto short_read = reader.read_exact(more);
  REQUIRE_FALSE(bool(short_read));
  CHECK(short_read.error().kind() == ErrorKind::wire);
  end = reader.at_end();
  REQUIRE(end.has_value());
  CHECK(*end);

  MemoryChannel broken(counting(5));
  broken.calls_until_failure = 0;
  BufferedReader unlucky(broken, 64);
  const auto failure = unlucky.peek(1);
  REQUIRE_FALSE(failure.has_value());
  CHECK(failure.error().kind() == ErrorKind::io);
  CHECK_FALSE(unlucky.at_end().has_value());
}

TEST_CASE("BufferedWriter.keeps_the_order_of_copies_and_references") {
  const Bytes page = counting(4096);
  MemoryChannel channel;
  BufferedWriter writer(channel);
  Bytes expected;
  for (int i = 0; i < 3000; ++i) {
    const Bytes header = counting(static_cast<std::size_t>(i % 11));
    REQUIRE(bool(writer.append(header)));
    expected.insert(expected.end(), header.begin(), header.end());
    if (i % 3 == 0) {
      REQUIRE(bool(writer.append_reference(page)));
      expected.insert(expected.end(), page.begin(), page.end());
    }
    REQUIRE(writer.total_written() == expected.size());
    REQUIRE(writer.pending_bytes() <= BufferedWriter::max_pending_bytes);
  }
  REQUIRE(bool(writer.flush()));
  CHECK(writer.pending_bytes() == 0);
  CHECK(channel.output() == expected);
}

TEST_CASE("BufferedWriter.sends_512_pages_with_headers_in_one_call") {
  const Bytes page = counting(4096);
  MemoryChannel channel;
  BufferedWriter writer(channel);
  for (int i = 0; i < 511; ++i) {
    REQUIRE(bool(writer.append(ByteView(page).first(8))));
    REQUIRE(bool(writer.append_reference(page)));
  }
  CHECK(channel.write_calls == 0);
  REQUIRE(bool(writer.append(ByteView(page).first(8))));
  REQUIRE(bool(writer.append_reference(page)));
  CHECK(channel.write_calls == 1);
}

TEST_CASE("BufferedWriter.merges_small_neighbours") {
  MemoryChannel channel;
  BufferedWriter writer(channel);
  const Bytes record = counting(9);
  const int fits = static_cast<int>(BufferedWriter::arena_bytes / record.size());
  for (int i = 0; i < fits; ++i) REQUIRE(bool(writer.append(record)));
  CHECK(channel.write_calls == 0);
  REQUIRE(bool(writer.append(record)));
  CHECK(channel.write_calls == 1);
  REQUIRE(bool(writer.flush()));
  CHECK(channel.output().size() == static_cast<std::size_t>(fits + 1) * record.size());
}

TEST_CASE("BufferedWriter.takes_pieces_larger_than_its_arena") {
  const Bytes big = counting(3 * BufferedWriter::arena_bytes + 5);
  MemoryChannel channel;
  BufferedWriter writer(channel);
  REQUIRE(bool(writer.append(ByteView(big).first(3))));
  REQUIRE(bool(writer.append(ByteView(big).subspan(3))));
  CHECK(writer.pending_bytes() == 0);
  CHECK(channel.output() == big);
}

TEST_CASE("BufferedWriter.fails_for_good_after_a_failure") {
  MemoryChannel channel;
  channel.calls_until_failure = 0;
  BufferedWriter writer(channel);
  REQUIRE(bool(writer.append(counting(4))));
  const auto first = writer.flush();
  REQUIRE_FALSE(bool(first));
  CHECK(first.error().text() == "broken on purpose");
  CHECK_FALSE(bool(writer.append(counting(4))));
  CHECK_FALSE(bool(writer.append_reference(counting(4))));
  CHECK_FALSE(bool(writer.flush()));
}
