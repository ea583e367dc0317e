// SPDX-License-Identifier: Apache-2.0
//
// The protocol of an incoming postcopy, as stories: what comes, and what is said to it.
#include "postcopy/destination_state.hpp"
#include "postcopy/destination_package.hpp"
#include "tests/unit/catch.hpp"

#include <string>

using namespace migrationd;
using namespace migrationd::postcopy;
namespace command = stream::command;

namespace {

using Sizes = command::PostcopyAdvise::Sizes;

const BlockShape small{"pc.ram", 16, 1};
const BlockShape huge{"mem", 1024, 512};

command::PostcopyAdvise advise_small() { return {Sizes{4096, 4096}}; }
command::PostcopyRamDiscard drop(std::uint64_t start, std::uint64_t length, const BlockShape& block = small) {
  return {block.name, {{start, length}}};
}

DestinationState advised() {
  DestinationState state(true);
  REQUIRE(state.advise(advise_small(), 4096, false).has_value());
  return state;
}

std::string refusal(const Result<void>& result) {
  REQUIRE_FALSE(result.has_value());
  return result.error().text();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("DestinationState.goes_from_advise_to_the_end") {
  DestinationState state(true);
  CHECK_FALSE(state.advised());
  REQUIRE(state.advise(advise_small(), 4096, false).has_value());
  CHECK(state.advised());
  REQUIRE(state.end_as_precopy().has_value());
  REQUIRE(state.discard(drop(0, 8192), small).has_value());
  REQUIRE(state.discard(drop(4096, 4096), small).has_value());
  REQUIRE(state.package({100}, true).has_value());
  REQUIRE(state.listen().has_value());
  CHECK(state.phase() == DestinationPhase::listen);
  REQUIRE(state.run().has_value());
  REQUIRE(state.end().has_value());
  CHECK(state.phase() == DestinationPhase::end);
}

TEST_CASE("DestinationState.listens_when_nothing_was_stale") {
  DestinationState state = advised();
  REQUIRE(state.package({100}, true).has_value());
  REQUIRE(state.listen().has_value());
  REQUIRE(state.run().has_value());
}

TEST_CASE("DestinationState.refuses_advise_that_does_not_fit") {
  CHECK(contains(refusal(DestinationState(false).advise(advise_small(), 4096, false)), "postcopy-ram is off"));
  CHECK(contains(refusal(DestinationState(true).advise({}, 4096, false)), "without page sizes"));
  CHECK(contains(refusal(DestinationState(false).advise({}, 4096, false)), "dirty bitmaps"));
  CHECK(contains(refusal(DestinationState(true).advise({Sizes{4096, 65536}}, 4096, false)), "target page sizes"));
  CHECK(contains(refusal(DestinationState(true).advise({Sizes{0x201000, 4096}}, 4096, false)), "0x201000"));
  CHECK(contains(refusal(DestinationState(true).advise({Sizes{0, 4096}}, std::nullopt, false)), "are none"));
  CHECK(contains(refusal(DestinationState(true).advise(advise_small(), 4096, true)), "behind the list"));
  // A machine that is made from the stream has whatever pages come.
  CHECK(DestinationState(true).advise({Sizes{0x201000, 4096}}, std::nullopt, false).has_value());
}

TEST_CASE("DestinationState.refuses_what_comes_out_of_order_and_names_the_state") {
  DestinationState state(true);
  CHECK(contains(refusal(state.discard(drop(0, 4096), small)), "(none)"));
  CHECK(contains(refusal(state.package({100}, true)), "(none)"));
  CHECK(contains(refusal(state.listen()), "(none)"));
  CHECK(contains(refusal(state.run()), "(none)"));
  state = advised();
  CHECK(contains(refusal(state.advise(advise_small(), 4096, false)), "(advise)"));
  CHECK(contains(refusal(state.run()), "(advise)"));
  CHECK(contains(refusal(state.listen()), "outside of a package"));
  CHECK(contains(refusal(state.end()), "(advise)"));
  REQUIRE(state.package({100}, true).has_value());
  CHECK(contains(refusal(state.package({100}, true)), "PACKAGED"));
  REQUIRE(state.listen().has_value());
  CHECK(contains(refusal(state.listen()), "(listen)"));
  CHECK(contains(refusal(state.discard(drop(0, 4096), small)), "(listen)"));
  REQUIRE(state.run().has_value());
  CHECK(contains(refusal(state.run()), "(running)"));
  CHECK(contains(refusal(state.end_as_precopy()), "ends as precopy"));
}

TEST_CASE("DestinationState.refuses_ranges_that_are_no_pages_of_the_block") {
  DestinationState state = advised();
  for (const auto& [start, length] :
       std::vector<std::pair<std::uint64_t, std::uint64_t>>{{0, 0},
                                                            {1, 4096},
                                                            {0, 100},
                                                            {65536, 4096},
                                                            {61440, 8192},
                                                            {4096, ~std::uint64_t{4095}},
                                                            {~std::uint64_t{4095}, 8192}}) {
    CHECK(contains(refusal(state.discard(drop(start, length), small)), "not pages of it"));
  }
  CHECK(contains(refusal(state.discard(drop(4096, 4096, huge), huge)), "pages of 2097152 bytes"));
  CHECK(state.discard(drop(2097152, 2097152, huge), huge).has_value());
  CHECK(state.discard(drop(0, 65536), small).has_value());
  // A refusal changes nothing.
  CHECK(state.phase() == DestinationPhase::discard);
}

TEST_CASE("DestinationState.bounds_the_package") {
  for (const std::uint32_t length : {0U, 9U, 0xffffffffU, 300U << 20}) {
    DestinationState state = advised();
    CHECK(state.package({length}, true).error().kind() == ErrorKind::limit);
  }
  DestinationState state = advised();
  CHECK(contains(refusal(state.package({100}, false)), "before the list"));
}

// --- the package
// -----------------------------------------------------------------------------------------------------------

namespace {

Bytes device(std::uint32_t id, const std::string& name, const std::string& body) {
  ByteWriter out;
  stream::DeviceSection section;
  section.section_id = id;
  section.name = name;
  section.version_id = 1;
  const ByteView bytes = as_bytes(body);
  section.body.assign(bytes.begin(), bytes.end());
  stream::encode_device_section(out, section);
  return std::move(out).take();
}

struct Maker {
  ByteWriter out;
  Maker& say(const stream::Command& what) {
    stream::encode_command(out, what);
    return *this;
  }
  Maker& add(const Bytes& bytes) {
    out.bytes(bytes);
    return *this;
  }
  Result<Package> parse() const { return parse_package(out.view(), 2, {}); }
  std::string why() const {
    auto parsed = parse();
    REQUIRE_FALSE(parsed.has_value());
    return parsed.error().text();
  }
};

}  // namespace

TEST_CASE("Package.is_taken_apart_into_devices_and_pings") {
  Maker maker;
  maker.say(command::PostcopyListen{}).say(command::Ping{9});
  maker.add(device(5, "timer", "abcd")).add(device(7, "globalstate", "running")).say(command::Ping{3});
  maker.say(command::PostcopyRun{});
  auto package = maker.parse();
  REQUIRE(package.has_value());
  CHECK(package->pings == std::vector<std::uint32_t>{9, 3});
  REQUIRE(package->sections.size() == 2);
  CHECK(package->sections[0].name == "timer");
  CHECK(package->sections[0].section_id == 5);
  CHECK(as_text(package->sections[1].body) == "running");
}

TEST_CASE("Package.without_devices_is_one") {
  auto package = Maker().say(command::PostcopyListen{}).say(command::Ping{3}).say(command::PostcopyRun{}).parse();
  REQUIRE(package.has_value());
  CHECK(package->sections.empty());
}

TEST_CASE("Package.names_what_stands_in_the_wrong_place") {
  const Bytes timer = device(5, "timer", "abcd");
  CHECK(contains(Maker().add(timer).say(command::PostcopyRun{}).why(), "does not begin with POSTCOPY_LISTEN"));
  CHECK(contains(Maker().say(command::PostcopyListen{}).add(timer).why(), "does not end with POSTCOPY_RUN"));
  CHECK(contains(Maker().say(command::PostcopyListen{}).say(command::PostcopyListen{}).why(), "in its place"));
  CHECK(contains(Maker().say(command::PostcopyRun{}).say(command::PostcopyListen{}).why(), "in its place"));
  CHECK(contains(Maker().say(command::Ping{1}).say(command::PostcopyListen{}).why(), "in its place"));
  CHECK(contains(Maker().say(command::PostcopyListen{}).say(command::Packaged{10}).why(), "in its place"));
  Bytes cut = timer;
  cut.pop_back();
  CHECK(contains(Maker().say(command::PostcopyListen{}).add(cut).say(command::PostcopyRun{}).why(), "no chain"));
  CHECK(contains(Maker().why(), "does not begin"));
}

TEST_CASE("Package.survives_every_cut") {
  Maker maker;
  maker.say(command::PostcopyListen{})
      .add(device(5, "timer", "abcd"))
      .say(command::Ping{3})
      .say(command::PostcopyRun{});
  const ByteView whole = maker.out.view();
  for (std::size_t size = 0; size < whole.size(); ++size)
    CHECK_FALSE(parse_package(whole.first(size), 2, {}).has_value());
  CHECK(parse_package(whole, 2, {}).has_value());
  // An id that the stream had before.
  CHECK_FALSE(parse_package(whole, 5, {}).has_value());
  CHECK_FALSE(parse_package(whole, 2, {5}).has_value());
}
