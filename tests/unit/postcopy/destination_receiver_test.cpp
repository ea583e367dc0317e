// SPDX-License-Identifier: Apache-2.0
//
// The readers of one connection, fed by a test.
#include "postcopy/page_puller.hpp"
#include "postcopy/page_receiver.hpp"
#include "protocol/stream/layout.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/transports/channels.hpp"

#include <array>
#include <chrono>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>

using namespace migrationd;
using namespace migrationd::postcopy;
using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t ram_id = 2;
const std::vector<BlockShape> shapes{{"ram", 64, 1}, {"huge", 8, 4}};

class RecordingPlacer final : public PagePlacer {
 public:
  Result<void> place(std::size_t block, std::uint64_t page, const std::byte* bytes) override {
    const std::lock_guard lock(mutex_);
    placed_[{block, page}] = static_cast<int>(*bytes);
    return {};
  }
  Result<void> place_zero(std::size_t block, std::uint64_t page) override {
    const std::lock_guard lock(mutex_);
    placed_[{block, page}] = 0;
    return {};
  }
  int at(std::size_t block, std::uint64_t page) {
    const std::lock_guard lock(mutex_);
    const auto found = placed_.find({block, page});
    return found == placed_.end() ? -1 : found->second;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<std::size_t, std::uint64_t>, int> placed_;
};

// Bytes of a source.
class Words {
 public:
  Words& page(std::uint64_t number, int value, std::string_view block = {}) {
    std::array<std::byte, 300> head{};
    out_.bytes(ByteView(head).first(stream::encode_page_header(head.data(), number * stream::page_bytes, block)));
    out_.bytes(std::vector(stream::page_bytes, std::byte(value)));
    return *this;
  }
  Words& zero(std::uint64_t number, std::string_view block = {}) {
    std::array<std::byte, 300> head{};
    out_.bytes(ByteView(head).first(stream::encode_zero_record(head.data(), number * stream::page_bytes, block)));
    return *this;
  }
  Words& eos() {
    std::array<std::byte, 8> mark{};
    out_.bytes(ByteView(mark).first(stream::encode_eos(mark.data())));
    return *this;
  }
  Words& part() {
    stream::encode_section_part(out_, ram_id);
    return *this;
  }
  Words& close() {
    eos();
    stream::encode_footer(out_, ram_id);
    return *this;
  }
  Words& ping(std::uint32_t value) {
    stream::encode_command(out_, stream::command::Ping{value});
    return *this;
  }
  Words& end() {
    stream::encode_section_end(out_, ram_id);
    close();
    stream::encode_eof(out_);
    return *this;
  }
  ByteView view() const { return out_.view(); }

 private:
  ByteWriter out_;
};

struct Connection {
  std::unique_ptr<StopSource> stop = testing::make_stop();
  testing::ChannelPair main = testing::make_channel_pair(*stop, *stop);
  testing::ChannelPair second = testing::make_channel_pair(*stop, *stop);
  transports::BufferedReader reader{*main.left};
  transports::BufferedReader second_reader{*second.left};
  DestinationPages pages{shapes};
  RecordingPlacer placer;
  ReturnChannel requests{pages.blocks()};
  IntakeCounters counters;
  std::unique_ptr<PageReceiver> receiver;

  explicit Connection(bool preempt = false, std::chrono::milliseconds mark_wait = PageReceiver::short_mark_wait) {
    REQUIRE(requests.open(*main.left).has_value());
    auto started = PageReceiver::start({reader, preempt ? &second_reader : nullptr, pages, pages.blocks(), placer,
                                        requests, counters, ram_id, mark_wait});
    REQUIRE(started.has_value());
    receiver = std::move(*started);
  }
  // For other threads, which make no assertions.
  static bool write(transports::Channel& channel, const Words& words) {
    const iovec piece{const_cast<std::byte*>(words.view().data()), words.view().size()};
    return channel.write({&piece, 1}).has_value();
  }
  static void say(transports::Channel& channel, const Words& words) { REQUIRE(write(channel, words)); }
  std::string why() {
    auto result = receiver->wait();
    REQUIRE_FALSE(result.has_value());
    return result.error().text();
  }
};

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("PageReceiver.places_pages_and_ends_with_the_stream") {
  Connection connection;
  CHECK(connection.pages.need({0, 9}) == PageNeed::ask);
  Words words;
  words.ping(4).part().page(1, 11, "ram").page(2, 12).zero(3).zero(9).close();
  words.part().page(0, 1, "huge").page(1, 2).zero(2).page(3, 4).close().end();
  Connection::say(*connection.main.right, words);
  REQUIRE(connection.receiver->wait().has_value());
  CHECK(connection.placer.at(0, 1) == 11);
  CHECK(connection.placer.at(0, 2) == 12);
  CHECK(connection.placer.at(0, 3) == -1);  // a hole that nobody waits for
  CHECK(connection.placer.at(0, 9) == 0);
  CHECK(connection.placer.at(1, 0) == 1);
  CHECK(connection.pages.missing() == 72 - 8);
  transports::BufferedReader answers(*connection.main.right);
  auto pong = answers.peek(8);
  REQUIRE(pong.has_value());
  CHECK(stream::decode_return_message(*pong).value() == stream::ReturnMessage(stream::reply::Pong{4}));
}

TEST_CASE("PageReceiver.keeps_the_first_of_two_copies") {
  Connection connection;
  Words words;
  words.part().page(1, 11, "ram").page(1, 12).zero(1).close().end();
  Connection::say(*connection.main.right, words);
  REQUIRE(connection.receiver->wait().has_value());
  CHECK(connection.placer.at(0, 1) == 11);
  CHECK(connection.counters.repeated_pages == 2);
}

TEST_CASE("PageReceiver.names_what_a_source_must_not_send") {
  const auto refused = [](const Words& words, const std::string& text) {
    Connection connection;
    Connection::say(*connection.main.right, words);
    const std::string why = connection.why();
    INFO(why);
    CHECK(contains(why, text));
  };
  refused(Words().part().page(1, 1, "nobody"), "not listed");
  refused(Words().part().page(64, 1, "ram"), "past the end");
  refused(Words().part().page(1, 1), "section 'ram'");
  refused(Words().part().page(0, 1, "huge").page(4, 1), "before that at");
  refused(Words().part().page(0, 1, "huge").page(0, 1), "twice");
  refused(Words().part().page(0, 1, "huge").close().end(), "within a host page");
}

TEST_CASE("PageReceiver.is_broken_when_the_source_goes_away") {
  Connection connection;
  Connection::say(*connection.main.right, Words().part().page(1, 1, "ram"));
  connection.main.right->shutdown();
  CHECK(contains(connection.why(), "ends too early"));
  CHECK(connection.placer.at(0, 1) == 1);
}

TEST_CASE("PageReceiver.waits_for_urgent_pages_behind_the_main_end") {
  Connection connection(true);
  CHECK(connection.pages.need({0, 5}) == PageNeed::ask);
  Connection::say(*connection.main.right, Words().end());
  bool written = false;
  std::thread source([&] {
    std::this_thread::sleep_for(30ms);
    written = Connection::write(*connection.second.right, Words().page(5, 55, "ram"));
  });
  const auto ended = connection.receiver->wait();
  source.join();
  REQUIRE(ended.has_value());
  CHECK(written);
  CHECK(connection.placer.at(0, 5) == 55);
}

TEST_CASE("PageReceiver.believes_the_urgent_channels_end_mark") {
  Connection connection(true);
  CHECK(connection.pages.need({0, 5}) == PageNeed::ask);  // never sent: zero
  Connection::say(*connection.main.right, Words().end());
  Connection::say(*connection.second.right, Words().page(6, 1, "ram").eos());
  REQUIRE(connection.receiver->wait().has_value());
  CHECK(connection.placer.at(0, 6) == 1);
}

// A source whose end mark finds the channel closed could be paused for ever.
TEST_CASE("PageReceiver.keeps_the_urgent_channel_open_for_an_end_mark_that_is_due") {
  Connection connection(true, 30s);
  Connection::say(*connection.main.right, Words().end());
  bool written = false;
  std::thread source([&] {
    std::this_thread::sleep_for(3 * PageReceiver::short_mark_wait);
    written = Connection::write(*connection.second.right, Words().eos());
  });
  const auto ended = connection.receiver->wait();
  source.join();
  REQUIRE(ended.has_value());
  CHECK(written);
}

TEST_CASE("PageReceiver.waits_a_moment_only_for_an_end_mark_that_may_come") {
  Connection connection(true);
  Connection::say(*connection.main.right, Words().end());
  CHECK(connection.receiver->wait().has_value());
}

TEST_CASE("PageReceiver.is_broken_when_the_urgent_channel_is_lost") {
  for (const bool main_ended : {false, true}) {
    Connection connection(true);
    CHECK(connection.pages.need({0, 5}) == PageNeed::ask);
    if (main_ended) Connection::say(*connection.main.right, Words().end());
    connection.second.right->shutdown();
    CHECK(contains(connection.why(), "preempt channel"));
  }
}

TEST_CASE("PageReceiver.ends_with_the_stop") {
  Connection connection(true);
  std::thread stopper([&] {
    std::this_thread::sleep_for(20ms);
    connection.stop->request();
  });
  auto result = connection.receiver->wait();
  stopper.join();
  REQUIRE_FALSE(result.has_value());
  CHECK(result.error().is_cancelled());
}

TEST_CASE("PagePuller.asks_for_everything_a_few_at_a_time") {
  Connection connection;
  auto puller = PagePuller::start(connection.pages, connection.requests);
  REQUIRE(puller.has_value());
  transports::BufferedReader reader(*connection.main.right);
  std::size_t asked = 0;
  // 64 small pages and 2 larger ones.
  while (asked < 66) {
    std::size_t wanted = 4;
    auto decoded = stream::decode_return_message(*reader.peek(wanted));
    while (decoded.needs_more()) decoded = stream::decode_return_message(*reader.peek(decoded.needed()));
    REQUIRE(decoded.is_ready());
    const auto request = std::get<stream::reply::RequestPages>(decoded.value());
    reader.consume(decoded.consumed());
    const std::size_t block = asked < 64 ? 0 : 1;
    CHECK(request.length == shapes[block].host_pages * stream::page_bytes);
    CHECK(connection.pages.outstanding() <= PagePuller::under_way);
    connection.pages.note_received(block, request.start / stream::page_bytes, shapes[block].host_pages);
    ++asked;
  }
  CHECK(connection.pages.missing() == 0);
  Connection::say(*connection.main.right, Words().end());
  REQUIRE(connection.receiver->wait().has_value());
}
