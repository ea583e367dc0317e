// SPDX-License-Identifier: Apache-2.0
#include "postcopy/stream_turns.hpp"
#include "tests/unit/catch.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

using migrationd::postcopy::StreamTurns;
using namespace std::chrono_literals;

namespace {

const StreamTurns::TimePoint start = StreamTurns::TimePoint() + 100h;

struct Folder {
  Folder() { REQUIRE(::mkdtemp(path.data()) != nullptr); }
  ~Folder() { std::filesystem::remove_all(path); }
  std::string board() const { return path + "/turns"; }
  std::string path = "/tmp/turns-XXXXXX";
};

}  // namespace

TEST_CASE("StreamTurns.so_many_stream_at_once_as_there_are_slots") {
  const Folder folder;
  StreamTurns one(folder.board(), 2);
  StreamTurns two(folder.board(), 2);
  StreamTurns three(folder.board(), 2);
  REQUIRE(one.shared());
  CHECK(one.take(start));
  CHECK(two.take(start));
  CHECK_FALSE(three.take(start));
  CHECK(one.take(start + 1ms));
  one.give_back();
  CHECK(three.take(start + 2ms));
  CHECK_FALSE(one.take(start + 3ms));
}

TEST_CASE("StreamTurns.a_slot_comes_back_from_who_ends") {
  const Folder folder;
  StreamTurns other(folder.board(), 1);
  {
    StreamTurns one(folder.board(), 1);
    CHECK(one.take(start));
    CHECK_FALSE(other.take(start));
  }
  CHECK(other.take(start));
}

TEST_CASE("StreamTurns.a_long_turn_ends_when_another_one_waits_and_only_then") {
  const Folder folder;
  StreamTurns one(folder.board(), 1);
  StreamTurns two(folder.board(), 1);
  CHECK(one.take(start));
  CHECK(one.take(start + StreamTurns::longest_turn));
  const auto later = start + 2 * StreamTurns::longest_turn;
  CHECK(one.take(later - 10ms));
  CHECK_FALSE(two.take(later - 5ms));
  CHECK_FALSE(one.take(later));
  CHECK(two.take(later + 5ms));
  CHECK_FALSE(one.take(later + 30ms));
}

TEST_CASE("StreamTurns.nobody_waits_for_one_that_stands_still") {
  const Folder folder;
  StreamTurns one(folder.board(), 1);
  StreamTurns two(folder.board(), 1);
  CHECK(one.take(start));
  CHECK_FALSE(two.take(start + StreamTurns::longest_standstill - 1ms));
  CHECK(two.take(start + StreamTurns::longest_standstill));
  CHECK(one.take(start + 300ms));
  CHECK_FALSE(two.take(start + 310ms));
}

TEST_CASE("StreamTurns.each_sees_the_others_starts_and_requests") {
  const Folder folder;
  StreamTurns one(folder.board(), 1);
  const StreamTurns two(folder.board(), 1);
  one.note_started(start);
  one.note_asked(start + 5ms);
  one.note_asked(start + 5500us);  // too soon to be told
  CHECK(two.urgent(start + 6ms).started == start);
  CHECK(two.urgent(start + 6ms).asked == start + 5ms);
  CHECK(one.urgent(start + 6ms).asked == start + 5500us);
  // What lies ahead of us is no time.
  CHECK(two.urgent(start + 1ms).asked == StreamTurns::TimePoint());
}

TEST_CASE("StreamTurns.rubbish_on_the_board_holds_nobody_up") {
  const Folder folder;
  StreamTurns one(folder.board(), 1);
  std::ofstream(folder.board()) << std::string(4096, '\xff');
  CHECK(one.urgent(start).asked == StreamTurns::TimePoint());
  CHECK(one.take(start));
  std::ofstream(folder.board(), std::ios::trunc).close();
  CHECK(one.take(start + 20ms));
  CHECK(one.urgent(start + 20ms).started == StreamTurns::TimePoint());
}

TEST_CASE("StreamTurns.without_a_board_of_our_own_everybody_has_a_turn") {
  const Folder folder;
  const auto alone = [](const std::string& path) {
    StreamTurns one(path, 1);
    StreamTurns two(path, 1);
    one.note_asked(start);
    return !one.shared() && one.take(start) && two.take(start) && one.urgent(start).asked == start;
  };
  CHECK(alone(folder.path + "/none/turns"));
  CHECK(alone(folder.path));  // no file
  std::ofstream(folder.path + "/open").close();
  REQUIRE(::chmod((folder.path + "/open").c_str(), 0666) == 0);
  CHECK(alone(folder.path + "/open"));
  REQUIRE(::symlink("open", (folder.path + "/link").c_str()) == 0);
  CHECK(alone(folder.path + "/link"));
}
