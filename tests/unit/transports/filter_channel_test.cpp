// SPDX-License-Identifier: Apache-2.0
#include "transports/filter_channel.hpp"
#include "tests/unit/transports/support.hpp"

using namespace migrationd;
using namespace migrationd::transports;
using migrationd::testing::ScratchDir;

namespace {

UniqueFd file_with(const ScratchDir& dir, const std::string& text, off_t position) {
  const std::string path = dir.file("input");
  std::ofstream(path, std::ios::binary) << text;
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  REQUIRE(::lseek(fd.get(), position, SEEK_SET) == position);
  return fd;
}

Result<std::string> read_all(Channel& channel) {
  std::string out;
  while (true) {
    char buffer[4096];
    const iovec piece{buffer, sizeof buffer};
    MD_TRY(const std::size_t got, channel.read({&piece, 1}));
    if (got == 0) return out;
    out.append(buffer, got);
  }
}

Result<std::string> through(const std::vector<std::string>& program, const std::string& text, off_t position = 0) {
  const ScratchDir dir;
  auto stop = StopSource::make();
  REQUIRE(stop.has_value());
  MD_TRY(auto child, start_filter(program, file_with(dir, text, position)));
  const auto channel = make_filter_channel(std::move(child), **stop, program[0], "file:input");
  return read_all(*channel);
}

}  // namespace

TEST_CASE("FilterChannel.gives_what_the_program_makes_of_the_file_from_its_position_on") {
  const std::string text = std::string(100000, 'x') + "end";
  const auto all = through({"cat"}, text);
  REQUIRE(all.has_value());
  CHECK(*all == text);
  const auto rest = through({"tr", "e", "E"}, text, 100000);
  REQUIRE(rest.has_value());
  CHECK(*rest == "End");
}

TEST_CASE("FilterChannel.its_end_is_an_error_when_the_program_ended_badly") {
  const auto failed = through({"sh", "-c", "cat; exit 3"}, "text");
  REQUIRE(failed.has_error());
  CHECK(failed.error().text() == "sh could not read it to the end: it ended with status 3");
  const auto killed = through({"sh", "-c", "kill -9 $$"}, "text");
  REQUIRE(killed.has_error());
  CHECK(killed.error().text() == "sh could not read it to the end: it was ended by signal 9");
}

TEST_CASE("FilterChannel.a_program_that_is_missing_is_named") {
  const auto missing = through({"no-such-program"}, "text");
  REQUIRE(missing.has_error());
  CHECK(missing.error().text() == "no-such-program is needed to read this file, but it is not installed");
}

TEST_CASE("FilterChannel.the_stop_ends_a_wait_and_the_program") {
  const ScratchDir dir;
  auto stop = StopSource::make();
  REQUIRE(stop.has_value());
  auto child = start_filter({"sleep", "600"}, file_with(dir, "text", 0));
  REQUIRE(child.has_value());
  const auto channel = make_filter_channel(std::move(*child), **stop, "sleep", "file:input");
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    (*stop)->request();
  });
  const auto got = read_all(*channel);
  later.join();
  REQUIRE(got.has_error());
  CHECK(got.error().is_cancelled());
}
