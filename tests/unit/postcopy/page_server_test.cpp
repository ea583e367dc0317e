// SPDX-License-Identifier: Apache-2.0
// The server told as stories: what is asked, and what is on the wire then.
#include "postcopy/page_server.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/sections.hpp"
#include "ram/ram_map.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/ram/memory_channel.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <thread>

using namespace migrationd;
using namespace migrationd::postcopy;
using ram::page_size;
using ram::test::MemoryChannel;
using stream::reply::RequestPages;

namespace {

// Pages whose first word is their number; zero pages where it is told so; a page that cannot be fetched.
class FakeOrigin final : public ram::PageOrigin {
 public:
  Result<std::unique_ptr<ram::PageReader>> open_reader() override {
    return std::unique_ptr<ram::PageReader>(std::make_unique<Reader>(*this));
  }

  std::uint64_t zero_from = ~std::uint64_t{0};
  std::uint64_t broken = ~std::uint64_t{0};

 private:
  class Reader final : public ram::PageReader {
   public:
    explicit Reader(FakeOrigin& origin) : origin_(origin), memory_(most_pages * page_size) {}
    Result<ram::OriginPiece> look(std::size_t, std::uint64_t first, std::uint64_t end) override {
      if (first >= origin_.zero_from) return ram::OriginPiece{end, true};
      return ram::OriginPiece{std::min(end, origin_.zero_from), false};
    }
    Result<void> read(std::size_t block, ram::PageRun run, std::span<const std::byte*> pages) override {
      if (origin_.broken >= run.first && origin_.broken < run.first + run.count) return wire_error("it is gone");
      for (std::uint64_t i = 0; i < run.count; ++i) {
        const std::uint64_t word = (block + 1) << 32 | (run.first + i);
        std::memcpy(memory_.data() + i * page_size, &word, sizeof word);
        pages[i] = memory_.data() + i * page_size;
      }
      return {};
    }

   private:
    FakeOrigin& origin_;
    std::vector<std::byte> memory_;
  };
};

// The page records of a stream: block and page -> first word (0: zero record), in order, each once.
struct Seen {
  std::vector<std::pair<std::string, std::uint64_t>> order;
  std::map<std::pair<std::string, std::uint64_t>, std::uint64_t> pages;
  std::vector<std::uint32_t> pings;
  bool ended = false;
};

void take_records(ByteView& rest, Seen& seen, std::string& block, bool bare) {
  while (!rest.empty()) {
    const auto record = stream::decode_ram_record(rest, !block.empty());
    if (record.kind == stream::RamKind::eos) {
      rest = rest.subspan(record.size);
      return;
    }
    REQUIRE((record.kind == stream::RamKind::page || record.kind == stream::RamKind::zero));
    if (record.named) block = std::string(record.name);
    const std::pair<std::string, std::uint64_t> key{block, record.offset / page_size};
    CHECK(seen.pages.count(key) == 0);
    std::uint64_t word = 0;
    if (record.kind == stream::RamKind::page) std::memcpy(&word, record.payload.data(), sizeof word);
    seen.pages[key] = word;
    seen.order.push_back(key);
    rest = rest.subspan(record.size);
  }
  CHECK(bare);
}

Seen read_main(const MemoryChannel& channel) {
  Seen seen;
  std::string block;
  ByteView rest = channel.bytes;
  while (!rest.empty()) {
    REQUIRE_FALSE(seen.ended);
    const auto element = stream::decode_element(rest);
    REQUIRE(element.is_ready());
    rest = rest.subspan(element.consumed());
    if (const auto* command = std::get_if<stream::Command>(&element.value())) {
      seen.pings.push_back(std::get<stream::command::Ping>(*command).value);
      continue;
    }
    if (std::holds_alternative<stream::EndOfStream>(element.value())) {
      seen.ended = true;
      continue;
    }
    take_records(rest, seen, block, false);
    const auto footer = stream::decode_footer(rest, 3, "ram");
    REQUIRE(footer.is_ready());
    rest = rest.subspan(footer.consumed());
  }
  return seen;
}

struct Story {
  explicit Story(std::vector<BlockShape> shapes, bool with_preempt = false, bool skip_zero = false,
                 const std::vector<PageRange>& preferred = {}, StreamTurns* turns = nullptr) {
    stop = *StopSource::make();
    ram::DirtyBitmaps dirty;
    std::vector<std::uint64_t> host_pages;
    for (const auto& shape : shapes) {
      dirty.emplace_back(shape.pages).set_all();
      host_pages.push_back(shape.host_pages);
    }
    ServerOptions options{3, skip_zero, &bandwidth, &background, turns};
    UnsentPages unsent(std::move(dirty), host_pages);
    unsent.prefer(preferred);
    server = *PageServer::make(std::move(shapes), std::move(unsent), origin, main_writer,
                               with_preempt ? &preempt_writer : nullptr, options, counters, *stop);
  }
  // The background runs to its end: its pings are answered from another thread.
  Result<void> stream_rest() {
    std::atomic<bool> done{false};
    std::thread peer([&] {
      for (std::uint32_t value = 0x10000; !done;) {
        server->pong(value++);
        std::this_thread::sleep_for(std::chrono::microseconds(50));
        if (value > 0x10400) value = 0x10000;
      }
    });
    auto result = server->stream_rest();
    done = true;
    peer.join();
    return result;
  }

  MemoryChannel main;
  MemoryChannel preempt;
  transports::BufferedWriter main_writer{main};
  transports::BufferedWriter preempt_writer{preempt};
  std::unique_ptr<StopSource> stop;
  std::atomic<std::uint64_t> bandwidth{0};
  std::atomic<bool> background{true};
  FakeOrigin origin;
  ServerCounters counters;
  std::unique_ptr<PageServer> server;
};

}  // namespace

TEST_CASE("PageServer.answers_a_request_first_then_its_neighbours_then_the_rest_each_once") {
  Story story({{"pc.ram", 100, 1}, {"rom", 4, 1}});
  REQUIRE(story.server->serve(RequestPages{50 * page_size, page_size, "pc.ram"}).has_value());
  REQUIRE(story.server->serve(RequestPages{50 * page_size, page_size, ""}).has_value());  // crossed
  REQUIRE(story.server->serve(RequestPages{2 * page_size, page_size, "rom"}).has_value());
  REQUIRE(story.server->serve(RequestPages{3 * page_size, page_size, ""}).has_value());  // of rom
  REQUIRE(story.stream_rest().has_value());
  REQUIRE(story.server->end_stream().has_value());
  const Seen seen = read_main(story.main);
  CHECK(seen.ended);
  CHECK(seen.pages.size() == 104);
  CHECK(seen.order[0] == std::pair<std::string, std::uint64_t>{"pc.ram", 50});
  CHECK(seen.order[1] == std::pair<std::string, std::uint64_t>{"rom", 2});
  CHECK(seen.order[2] == std::pair<std::string, std::uint64_t>{"rom", 3});
  CHECK(seen.pages.at({"rom", 3}) == (std::uint64_t{2} << 32 | 3));
  CHECK(story.counters.requests == 4);
  CHECK(story.counters.answered == 3);
  CHECK(story.server->asked_for() == std::vector<PageRange>{{0, {50, 1}}, {1, {2, 2}}});
}

TEST_CASE("PageServer.requests_that_are_none_break_the_connection") {
  const auto refused = [](const RequestPages& request) {
    Story story({{"pc.ram", 100, 1}});
    const auto served = story.server->serve(request);
    REQUIRE(served.has_error());
    CHECK(story.main.bytes.empty());
    // The mover learns of it.
    CHECK(story.server->stream_rest().has_error());
    return served.error().text();
  };
  CHECK(refused({0, page_size, "nvram"}).find("'nvram', which this machine has not") != std::string::npos);
  CHECK(refused({0, page_size, ""}).find("none was") != std::string::npos);
  CHECK(refused({100, page_size, "pc.ram"}).find("not whole pages") != std::string::npos);
  CHECK(refused({0, 100, "pc.ram"}).find("not whole pages") != std::string::npos);
  CHECK(refused({0, 0, "pc.ram"}).find("not whole pages") != std::string::npos);
  CHECK(refused({100 * page_size, page_size, "pc.ram"}).find("past the end") != std::string::npos);
  CHECK(refused({99 * page_size, 2 * page_size, "pc.ram"}).find("past the end") != std::string::npos);
  CHECK(refused({~std::uint64_t{0} - 4095, page_size, "pc.ram"}).find("past the end") != std::string::npos);
}

TEST_CASE("PageServer.a_page_that_cannot_be_fetched_is_not_sent_as_zeros") {
  Story story({{"pc.ram", 100, 1}});
  story.origin.broken = 70;
  const auto served = story.server->serve(RequestPages{70 * page_size, page_size, "pc.ram"});
  REQUIRE(served.has_error());
  CHECK(served.error().text().find("block 'pc.ram', page 0x46000: it is gone") != std::string::npos);
  CHECK(story.main.bytes.empty());
  CHECK(story.server->stream_rest().has_error());
  CHECK(story.server->end_stream().has_error());
  CHECK(read_main(story.main).ended == false);
}

TEST_CASE("PageServer.zero_pages_are_left_out_until_asked_for") {
  Story story({{"pc.ram", 1000, 1}}, false, true);
  story.origin.zero_from = 10;
  REQUIRE(story.server->serve(RequestPages{500 * page_size, page_size, "pc.ram"}).has_value());
  REQUIRE(story.stream_rest().has_value());
  REQUIRE(story.server->serve(RequestPages{600 * page_size, page_size, ""}).has_value());
  REQUIRE(story.server->end_stream().has_value());
  // Too late: the destination's memory is whole without it.
  REQUIRE(story.server->serve(RequestPages{700 * page_size, page_size, ""}).has_value());
  const Seen seen = read_main(story.main);
  CHECK(seen.pages.size() == 12);
  CHECK(seen.pages.at({"pc.ram", 500}) == 0);
  CHECK(seen.pages.at({"pc.ram", 600}) == 0);
  CHECK(seen.ended);
}

TEST_CASE("PageServer.a_huge_page_goes_whole_and_in_order_holes_and_all") {
  Story story({{"m0", 1024, 512}}, false, true);
  story.origin.zero_from = 700;
  REQUIRE(story.server->serve(RequestPages{0x200000, 0x200000, "m0"}).has_value());
  const Seen seen = read_main(story.main);
  REQUIRE(seen.order.size() == 512);
  for (std::uint64_t i = 0; i < 512; ++i) {
    CHECK(seen.order[i].second == 512 + i);
    CHECK((seen.pages.at(seen.order[i]) == 0) == (512 + i >= 700));
  }
  REQUIRE(story.stream_rest().has_value());
  CHECK(read_main(story.main).order.size() == 1024);
}

TEST_CASE("PageServer.with_a_preempt_channel_urgent_pages_go_there_bare_and_late_ones_too") {
  Story story({{"pc.ram", 100, 1}}, true, true);
  story.origin.zero_from = 90;
  REQUIRE(story.server->serve(RequestPages{50 * page_size, page_size, "pc.ram"}).has_value());
  CHECK(story.main.bytes.empty());
  REQUIRE(story.server->serve(RequestPages{51 * page_size, page_size, ""}).has_value());
  REQUIRE(story.stream_rest().has_value());
  REQUIRE(story.server->end_stream().has_value());
  REQUIRE(story.server->serve(RequestPages{95 * page_size, page_size, ""}).has_value());
  REQUIRE(story.server->end_preempt().has_value());
  REQUIRE(story.server->serve(RequestPages{96 * page_size, page_size, ""}).has_value());
  Seen urgent;
  std::string block;
  ByteView rest = story.preempt.bytes;
  take_records(rest, urgent, block, true);
  CHECK(rest.empty());
  CHECK(urgent.order ==
        std::vector<std::pair<std::string, std::uint64_t>>{{"pc.ram", 50}, {"pc.ram", 51}, {"pc.ram", 95}});
  CHECK(read_main(story.main).pages.size() == 88);
}

// It closes that channel when it has everything, and says so afterwards. A request of its last moment, for a page that
// is zero without a look, may find it closed, and so may the end mark.
TEST_CASE("PageServer.behind_the_end_a_preempt_channel_that_was_closed_is_no_failure") {
  const auto find_closed = [](int closed, bool by_a_request) {
    Story story({{"pc.ram", 100, 1}}, true, true);
    story.origin.zero_from = 90;
    REQUIRE(story.stream_rest().has_value());
    REQUIRE(story.server->end_stream().has_value());
    story.preempt.write_errno = closed;
    if (by_a_request) {
      CHECK(story.server->serve(RequestPages{95 * page_size, page_size, "pc.ram"}).has_value());
      CHECK(story.server->serve(RequestPages{96 * page_size, page_size, ""}).has_value());
    }
    CHECK(story.server->end_preempt().has_value());
    CHECK_FALSE(story.server->broke_it());
    CHECK(story.main.shutdowns == 0);
  };
  for (const int closed : {EPIPE, ECONNRESET}) {
    find_closed(closed, false);
    find_closed(closed, true);
  }
}

TEST_CASE("PageServer.is_not_quiet_while_the_destination_has_pieces_to_read") {
  Story story({{"pc.ram", 40, 1}}, true);
  REQUIRE(story.server->stream_rest().has_value());  // two pieces, within the window
  REQUIRE(story.server->end_stream().has_value());
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(story.server->quiet_for() == std::chrono::milliseconds::zero());
  story.server->pong(0x10000);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(story.server->quiet_for() == std::chrono::milliseconds::zero());
  story.server->pong(0x10001);
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(story.server->quiet_for() >= std::chrono::milliseconds(5));
}

TEST_CASE("PageServer.a_preempt_channel_that_breaks_before_the_end_breaks_both") {
  Story story({{"pc.ram", 100, 1}}, true, true);
  story.preempt.write_errno = EPIPE;
  REQUIRE_FALSE(story.server->serve(RequestPages{50 * page_size, page_size, "pc.ram"}).has_value());
  CHECK(story.main.shutdowns == 1);
  const auto rest = story.server->stream_rest();
  REQUIRE_FALSE(rest.has_value());
  CHECK(rest.error().sys_errno() == EPIPE);
}

TEST_CASE("PageServer.what_the_network_loses_behind_the_end_is_a_failure") {
  Story story({{"pc.ram", 100, 1}}, true, true);
  story.origin.zero_from = 90;
  REQUIRE(story.stream_rest().has_value());
  REQUIRE(story.server->end_stream().has_value());
  story.preempt.write_errno = ETIMEDOUT;
  CHECK_FALSE(story.server->end_preempt().has_value());
  Story other({{"pc.ram", 100, 1}}, true, true);
  other.origin.zero_from = 90;
  REQUIRE(other.stream_rest().has_value());
  REQUIRE(other.server->end_stream().has_value());
  other.preempt.write_errno = ETIMEDOUT;
  CHECK_FALSE(other.server->serve(RequestPages{95 * page_size, page_size, "pc.ram"}).has_value());
  CHECK(other.main.shutdowns == 1);
}

TEST_CASE("PageServer.with_the_background_off_only_requests_are_served") {
  Story story({{"pc.ram", 4, 1}});
  story.background = false;
  std::thread guest([&] {
    for (std::uint64_t page = 0; page < 4; ++page) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      CHECK_NOFAIL(story.server->serve(RequestPages{page * page_size, page_size, "pc.ram"}).has_value());
    }
  });
  // Ends by itself: the guest has asked for everything.
  const auto streamed = story.server->stream_rest();
  guest.join();
  REQUIRE(streamed.has_value());
  CHECK(read_main(story.main).pages.size() == 4);
  CHECK(story.counters.answered == 4);
}

TEST_CASE("PageServer.the_stop_and_a_lost_connection_end_the_background") {
  Story story({{"pc.ram", 4, 1}});
  story.background = false;
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    story.server->connection_ended(Error(ErrorKind::peer, "gone"));
  });
  const auto streamed = story.server->stream_rest();
  other.join();
  REQUIRE(streamed.has_error());
  CHECK(streamed.error().text() == "gone");

  Story stopped({{"pc.ram", 4, 1}});
  stopped.stop->request();
  const auto ended = stopped.server->stream_rest();
  REQUIRE(ended.has_error());
  CHECK(ended.error().is_cancelled());
}

TEST_CASE("PageServer.a_working_set_goes_first_in_its_order_zeros_too_and_also_without_the_background") {
  Story story({{"pc.ram", 1000, 1}, {"rom", 4, 1}}, false, true,
              {{0, {800, 2}}, {1, {3, 1}}, {0, {998, 2}}, {0, {7, 1}}});
  story.origin.zero_from = 999;
  story.background = false;
  std::thread guest([&] {
    while (story.counters.due_bytes != 998 * page_size) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    story.stop->request();
  });
  REQUIRE(story.server->stream_rest().has_error());
  guest.join();
  using Order = std::vector<std::pair<std::string, std::uint64_t>>;
  const Seen seen = read_main(story.main);
  CHECK(seen.order ==
        Order{{"pc.ram", 800}, {"pc.ram", 801}, {"rom", 3}, {"pc.ram", 998}, {"pc.ram", 999}, {"pc.ram", 7}});
  CHECK(seen.pages.at({"pc.ram", 999}) == 0);
  CHECK(seen.pages.at({"pc.ram", 7}) == (std::uint64_t{1} << 32 | 7));
  CHECK(seen.pings.size() == 1);
}

TEST_CASE("PageServer.a_huge_page_of_a_working_set_goes_whole") {
  Story story({{"m0", 2048, 512}}, false, false, {{0, {1100, 1}}, {0, {0, 1}}});
  REQUIRE(story.stream_rest().has_value());
  const Seen seen = read_main(story.main);
  REQUIRE(seen.order.size() == 2048);
  CHECK(seen.order[0].second == 1024);
  CHECK(seen.order[511].second == 1535);
  CHECK(seen.order[512].second == 0);
}

TEST_CASE("PageServer.with_turns_the_background_waits_until_nobody_asks_and_for_its_turn") {
  const std::string board = fmt::format("/tmp/page-server-turns-{}", ::getpid());
  StreamTurns turns(board, 1);
  StreamTurns other(board, 1);
  ::unlink(board.c_str());
  REQUIRE(turns.shared());
  Story story({{"pc.ram", 100, 1}}, false, false, {}, &turns);
  REQUIRE(other.take(std::chrono::steady_clock::now()));
  REQUIRE(story.server->send_first({}).has_value());
  const auto begun = std::chrono::steady_clock::now();
  Result<void> streamed;
  std::thread mover([&] { streamed = story.stream_rest(); });
  // An answer goes out while the background waits.
  REQUIRE(story.server->serve(RequestPages{50 * page_size, page_size, "pc.ram"}).has_value());
  while (std::chrono::steady_clock::now() - begun < std::chrono::milliseconds(60)) {
    CHECK_NOFAIL(other.take(std::chrono::steady_clock::now()));
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const std::uint64_t sent = story.counters.normal_pages;
  other.give_back();
  mover.join();
  CHECK_NOFAIL(sent == 1);  // unless the other one was kept from a processor for a quarter of a second
  REQUIRE(streamed.has_value());
  CHECK(read_main(story.main).pages.size() == 100);
}

TEST_CASE("PageServer.neighbours_of_pages_asked_for_in_order_go_at_once_and_belong_to_the_working_set") {
  const std::string board = fmt::format("/tmp/page-server-turns-{}", ::getpid());
  StreamTurns turns(board, 1);
  StreamTurns other(board, 1);
  ::unlink(board.c_str());
  REQUIRE(other.take(std::chrono::steady_clock::now()));  // the rest waits
  Story story({{"pc.ram", 200, 1}}, false, false, {}, &turns);
  REQUIRE(story.server->send_first({}).has_value());
  Result<void> streamed;
  std::thread mover([&] { streamed = story.stream_rest(); });
  REQUIRE(story.server->serve(RequestPages{100 * page_size, page_size, "pc.ram"}).has_value());
  REQUIRE(story.server->serve(RequestPages{101 * page_size, page_size, ""}).has_value());
  while (story.counters.normal_pages < 34) {
    CHECK_NOFAIL(other.take(std::chrono::steady_clock::now()));
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  other.give_back();
  mover.join();
  REQUIRE(streamed.has_value());
  const Seen seen = read_main(story.main);
  REQUIRE(seen.pages.size() == 200);
  CHECK(seen.order[2].second == 102);
  CHECK(story.server->asked_for() == std::vector<PageRange>{{0, {100, 34}}});
}
