// SPDX-License-Identifier: Apache-2.0
// The guest protocol's packets: what is written is read back, and everything that is wrong is refused by its name.
#include "guest/protocol.hpp"
#include "tests/unit/catch.hpp"

#include <tuple>

using namespace migrationd;
using namespace migrationd::guest;

namespace {

template <class Body>
Bytes bytes_of(const Body& body) {
  ByteWriter out;
  encode(body, out);
  return std::move(out).take();
}

// Written, read, and written again: the same bytes, and one byte more or less is refused.
template <class Body>
Body round_trip(const Body& body) {
  const Bytes first = bytes_of(body);
  auto read = decode<Body>(first);
  INFO((read ? "" : read.error().text()));
  REQUIRE(read.has_value());
  CHECK(bytes_of(*read) == first);
  for (std::size_t length = 0; length < first.size(); ++length) {
    CHECK(!decode<Body>(ByteView(first).first(length)).has_value());
  }
  Bytes longer = first;
  longer.push_back(std::byte{0});
  const auto too_long = decode<Body>(longer);
  REQUIRE(!too_long.has_value());
  CHECK(too_long.error().text().find("1 bytes too many") != std::string::npos);
  return *std::move(read);
}

template <class Body>
std::string fault_of(const Body& body) {
  const auto read = decode<Body>(bytes_of(body));
  REQUIRE(!read.has_value());
  CHECK(read.error().kind() == ErrorKind::wire);
  return read.error().text();
}

template <class Body>
std::string fault_of_patched(const Body& body, std::size_t at, std::uint8_t value) {
  Bytes bytes = bytes_of(body);
  bytes.at(at) = std::byte{value};
  const auto read = decode<Body>(bytes);
  REQUIRE(!read.has_value());
  return read.error().text();
}

const Hello hello{1, 3, "libmigrationd-guest 0.1", "my-machine-1", 4, true};
const AddBlock block{"ram", 0x7f0000000000, 64 << 20, 4096, Tracking::both};
const AddDevice device{"bus/1/counter", 7, 3, 1, true, false};

Result<Header> header_of(std::uint16_t type, std::uint16_t zero, std::uint32_t serial) {
  ByteWriter out;
  out.u16(type).u16(zero).u32(serial);
  ByteReader in(out.view());
  return decode_header(in);
}

StateSection section(std::string id, std::uint32_t instance, std::string_view body) {
  StateSection out{std::move(id), instance, 1, false, {}, R"("vmsd_name": "a", "version": 1, "fields": [])"};
  out.body.assign(as_bytes(body).begin(), as_bytes(body).end());
  return out;
}

}  // namespace

TEST_CASE("GuestProtocol.every_body_is_read_back_as_it_was_written") {
  CHECK(round_trip(hello).library == hello.library);
  CHECK(round_trip(Welcome{1, "migrationd 0.1", 5000}).deadline_ms == 5000);
  CHECK(round_trip(block).address == block.address);
  CHECK(round_trip(NewBlock{"huge", 4 << 20, 2097152}).page_size == 2097152);
  CHECK(round_trip(device).unmigratable);
  Ready ready{GuestState::running, {}};
  ready.uuid[15] = 9;
  CHECK(round_trip(ready).uuid[15] == 9);
  CHECK(round_trip(AddBlocker{"a disk is passed through"}).reason == "a disk is passed through");
  CHECK(round_trip(BlockerNumber{12}).number == 12);
  CHECK(round_trip(GivenBack{3, 0x1000, 0x2000}).length == 0x2000);
  CHECK(round_trip(Throttle{99}).percent == 99);
  CHECK(round_trip(StateLength{4096}).length == 4096);
  CHECK(round_trip(Watch{Purpose::missing, 0x1234567890}).features == 0x1234567890);
  CHECK(round_trip(Unwatch{Purpose::protect_sync}).purpose == Purpose::protect_sync);
  CHECK(round_trip(DirtyLogSwitch{true}).on);
  CHECK(round_trip(OutcomeNotice{Outcome::stays, "the peer said no"}).what == Outcome::stays);
  CHECK(round_trip(Refusal{"no: größer als gedacht"}).why == "no: größer als gedacht");
  round_trip(Empty{});
}

TEST_CASE("GuestProtocol.a_packet_is_its_header_and_its_body") {
  const Bytes bytes = packet(static_cast<std::uint16_t>(Type::throttle), 0, Throttle{40});
  ByteReader in(bytes);
  const auto header = decode_header(in);
  REQUIRE(header.has_value());
  CHECK(header->type == static_cast<std::uint16_t>(Type::throttle));
  CHECK(!header->is_reply());
  const auto body = decode<Throttle>(in.rest());
  REQUIRE(body.has_value());
  CHECK(body->percent == 40);
}

TEST_CASE("GuestProtocol.headers_of_unknown_types_or_wrong_serials_are_refused") {
  CHECK(header_of(1, 0, 1).has_value());
  CHECK(header_of(0x8001, 0, 1)->is_reply());
  CHECK(header_of(refusal, 0, 1)->is_reply());
  CHECK(header_of(8, 0, 0).has_value());
  CHECK(header_of(1, 1, 1).error().text() == "HELLO: reserved bytes are 0x1");
  CHECK(header_of(1, 0, 0).error().text() == "HELLO: serial 0, which notices have");
  CHECK(header_of(8, 0, 5).error().text() == "GIVEN_BACK: serial 5, but a notice has none");
  CHECK(header_of(refusal, 0, 0).error().text() == "refusal: serial 0, which notices have");
  for (const unsigned type : {0U, 10U, 31U, 43U, 0x8000U, 0x8008U, 0x8022U, 0x802aU, 0xfffeU}) {
    INFO(type);
    CHECK(!header_of(static_cast<std::uint16_t>(type), 0, 1).has_value());
  }
  ByteReader none(ByteView{});
  CHECK(decode_header(none).error().text() == "message: 0 bytes are less than a header");
}

TEST_CASE("GuestProtocol.hello_is_proved") {
  CHECK(fault_of_patched(hello, 0, 0) == "HELLO: magic: 0x444731 is not that of a guest");
  Hello body = hello;
  body.lowest = 4;
  CHECK(fault_of(body) == "HELLO: versions: 4 to 3 is no range");
  body = hello;
  body.lowest = 0;
  CHECK(fault_of(body) == "HELLO: versions: 0 to 3 is no range");
  body = hello;
  body.machine_name = "a\nb";
  CHECK(fault_of(body) == "HELLO: machine name: 'a\\x0ab' is not 1 to 255 bytes of printable ASCII");
  body = hello;
  body.vcpus = guest_vcpus + 1;
  CHECK(fault_of(body) == "HELLO: vCPUs: 4097 are more than 4096");
  CHECK(fault_of_patched(hello, bytes_of(hello).size() - 1, 2) == "HELLO: wants the device: 2 is none of 0 to 1");
  CHECK(fault_of(Welcome{1, "d", 0}) == "WELCOME: deadline: 0 ms");
  CHECK(fault_of(Welcome{1, "", 5}) == "WELCOME: daemon: '' is not 1 to 255 bytes of printable ASCII");
}

TEST_CASE("GuestProtocol.blocks_are_proved") {
  const auto with = [](auto change) {
    AddBlock body = block;
    change(body);
    return fault_of(body);
  };
  CHECK(with([](AddBlock& b) { b.name = std::string(256, 'x'); }).find("ADD_BLOCK: name: ") == 0);
  CHECK(with([](AddBlock& b) { b.page_size = 8192; }) == "ADD_BLOCK: page size: 8192 is neither 4096 nor 2097152");
  CHECK(with([](AddBlock& b) { b.page_size = 0; }) == "ADD_BLOCK: page size: 0 is neither 4096 nor 2097152");
  CHECK(with([](AddBlock& b) { b.length = 0; }) == "ADD_BLOCK: length: 0x0 is not in 1 to 0x100000000000");
  CHECK(with([](AddBlock& b) { b.length = limits::ram_block_bytes + 4096; }).find("ADD_BLOCK: length: ") == 0);
  CHECK(with([](AddBlock& b) { b.length = 4097; }) ==
        "ADD_BLOCK: length: 0x1001 is not a multiple of the page size 4096");
  CHECK(with([](AddBlock& b) { b.address += 1; }) ==
        "ADD_BLOCK: address: 0x7f0000000001 is not aligned to pages of 4096");
  CHECK(with([](AddBlock& b) { b.address = 0; }) == "ADD_BLOCK: address: 0x0 is not aligned to pages of 4096");
  CHECK(with([](AddBlock& b) { b.address = ~std::uint64_t{0} - 4095; }) ==
        "ADD_BLOCK: address: 0xfffffffffffff000 and 0x4000000 bytes wrap around");
  CHECK(fault_of_patched(block, bytes_of(block).size() - 1, 4) == "ADD_BLOCK: tracking: 4 is none of 0 to 3");
  CHECK(fault_of(NewBlock{"a", 4096, 2097152}) ==
        "NEW_BLOCK: length: 0x1000 is not a multiple of the page size 2097152");
}

TEST_CASE("GuestProtocol.devices_are_proved") {
  AddDevice body = device;
  body.minimum_version = 4;
  CHECK(fault_of(body) == "ADD_DEVICE: minimum version: 4 is above the version 3");
  body = device;
  body.version = 0x80000000U;
  CHECK(fault_of(body) == "ADD_DEVICE: version: 0x80000000 is negative");
  body = device;
  body.instance = 0xffffffffU;
  CHECK(fault_of(body) == "ADD_DEVICE: instance: 0xffffffff is not an instance id");
  CHECK(fault_of_patched(device, bytes_of(device).size() - 1, 4) == "ADD_DEVICE: flags: 0x4 has unknown bits");
}

TEST_CASE("GuestProtocol.small_bodies_are_proved") {
  CHECK(fault_of_patched(Ready{}, 0, 3) == "READY: state: 3 is none of 0 to 2");
  CHECK(fault_of(AddBlocker{""}) == "ADD_BLOCKER: reason: is empty");
  CHECK(fault_of(GivenBack{guest_blocks, 0, 4096}) == "GIVEN_BACK: block: 256 does not exist");
  CHECK(fault_of(GivenBack{0, 0, 0}) == "GIVEN_BACK: range: offset 0x0 and length 0x0 are not whole pages");
  CHECK(fault_of(GivenBack{0, 1, 4096}) == "GIVEN_BACK: range: offset 0x1 and length 0x1000 are not whole pages");
  CHECK(fault_of(GivenBack{0, ~std::uint64_t{4095}, 4096}).find("lie in no block") != std::string::npos);
  CHECK(fault_of(Throttle{100}) == "THROTTLE: percent: 100 is above 99");
  CHECK(fault_of(StateLength{7}).find("state: length: 7 is not in 8 to ") == 0);
  CHECK(fault_of(StateLength{state_file_bytes + 1}).find("state: length: ") == 0);
  CHECK(fault_of_patched(Watch{}, 0, 0) == "WATCH: purpose: 0 is none of 1 to 3");
  CHECK(fault_of_patched(Unwatch{}, 0, 4) == "UNWATCH: purpose: 4 is none of 1 to 3");
  CHECK(fault_of_patched(DirtyLogSwitch{}, 0, 2) == "DIRTY_LOG: on: 2 is none of 0 to 1");
  CHECK(fault_of_patched(OutcomeNotice{}, 0, 4) == "OUTCOME: what: 4 is none of 1 to 3");
}

TEST_CASE("GuestProtocol.sentences_are_utf8_without_control_characters") {
  for (const std::string_view fit : {"", "plain", "größer", "\xe2\x82\xac", "\xf0\x9f\x98\x80"})
    CHECK(is_sentence(fit));
  for (const std::string_view unfit : {"\n", "\x7f", "\xc2\x85", "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80",
                                       "\xf0\x80\x80\x80", "\xf4\x90\x80\x80", "\xff", "\xe2\x82", "a\xc3"}) {
    INFO(printable(unfit));
    CHECK(!is_sentence(unfit));
  }
  CHECK(is_sentence(std::string(text_bytes, 'a')));
  CHECK(!is_sentence(std::string(text_bytes + 1, 'a')));
  ByteWriter raw;
  raw.u16(2).text("\n!");
  CHECK(!decode<Refusal>(raw.view()).has_value());
}

TEST_CASE("GuestProtocol.sentences_are_made_fit_when_they_are_written") {
  const auto written = [](std::string why) {
    auto read = decode<Refusal>(bytes_of(Refusal{std::move(why)}));
    REQUIRE(read.has_value());
    return read->why;
  };
  CHECK(written("two\nlines\xff") == "two?lines?");
  CHECK(written(std::string(10000, 'a')) == std::string(text_bytes, 'a'));
  CHECK(written(std::string(text_bytes - 1, 'a') + "ö") == std::string(text_bytes - 1, 'a'));
}

TEST_CASE("GuestProtocol.descriptors_that_belong_to_a_message_are_known") {
  const auto count = [](unsigned type) {
    const FdCount fds = fds_of(static_cast<std::uint16_t>(type));
    return std::tuple(fds.least, fds.most);
  };
  CHECK(count(1) == std::tuple(0U, 0U));
  CHECK(count(0x8001) == std::tuple(0U, 1U));
  CHECK(count(2) == std::tuple(1U, 2U));
  CHECK(count(0x8003) == std::tuple(1U, 1U));
  CHECK(count(36) == std::tuple(1U, 1U));
  CHECK(count(0x8023) == std::tuple(1U, 1U));
  CHECK(count(0x8025) == std::tuple(1U, 2U));
  CHECK(count(refusal) == std::tuple(0U, 0U));
  AddBlock body = block;
  CHECK(fds_of(body) == 2);
  body.tracking = Tracking::write_protect;
  CHECK(fds_of(body) == 1);
  CHECK(std::string_view(name_of(0x8025)) == "reply to WATCH");
  CHECK(std::string_view(name_of(99)) == "message of unknown type");
}

TEST_CASE("GuestState.is_read_back_as_it_was_written") {
  std::vector<StateSection> sections{section("counter", 0, "abc"), section("counter", 1, ""), section("timer", 0, "x")};
  sections[2].early = true;
  const auto bytes = encode_state(sections);
  REQUIRE(bytes.has_value());
  const auto read = decode_state(*bytes);
  REQUIRE(read.has_value());
  REQUIRE(read->size() == 3);
  CHECK((*read)[0].body == sections[0].body);
  CHECK((*read)[1].instance == 1);
  CHECK((*read)[2].early);
  CHECK((*read)[2].description == sections[2].description);
  for (std::size_t length = 0; length < bytes->size(); ++length) {
    CHECK(!decode_state(ByteView(*bytes).first(length)).has_value());
  }
}

TEST_CASE("GuestState.refuses_what_is_wrong_by_section_and_cause") {
  const auto fault = [](const std::vector<StateSection>& sections) {
    const auto bytes = encode_state(sections);
    REQUIRE(bytes.has_value());
    const auto read = decode_state(*bytes);
    REQUIRE(!read.has_value());
    return read.error().text();
  };
  CHECK(fault({section("a", 0, ""), section("b\x1b", 0, "")}) ==
        "state: section 1: id 'b\\x1b' is not 1 to 255 bytes of printable ASCII");
  CHECK(fault({section("a", 2, ""), section("a", 2, "")}) == "state: section 1: 'a' 2 stands there twice");
  StateSection odd = section("a", 0, "");
  odd.description = "{\n}";
  CHECK(fault({odd}) == "state: section 0: 'a': its description is not printable ASCII");
  Bytes bytes = *encode_state({section("a", 0, "")});
  bytes.push_back(std::byte{0});
  CHECK(decode_state(bytes).error().text() == "state: 1 bytes too many");
  bytes.pop_back();
  bytes[8 + 2 + 1 + 4 + 4] = std::byte{2};
  CHECK(decode_state(bytes).error().text() == "state: section 0: 'a': early is 2, neither 0 nor 1");
  bytes[3] = std::byte{0};
  CHECK(decode_state(bytes).error().text() == "state: magic 0x4d445300 is not that of a state");
}

TEST_CASE("GuestState.counts_and_lengths_are_bounded_before_anything_is_taken") {
  ByteWriter many;
  many.u32(state_magic).u32(0xffffffff);
  CHECK(decode_state(many.view()).error().text() == "state: 4294967295 sections are more than 16384");
  CHECK(decode_state(many.view()).error().kind() == ErrorKind::limit);
  ByteWriter lie;
  lie.u32(state_magic).u32(1).u16(1).text("a").u32(0).u32(0).u8(0).u32(0xfffffff0);
  CHECK(decode_state(lie.view()).error().text().find("ends too early: 4294967280 bytes wanted") != std::string::npos);
  StateSection large = section("a", 0, "");
  large.description = std::string(limits::description_bytes + 1, ' ');
  CHECK(encode_state({large}).error().text() == "state: 'a': more than 67108864 bytes of description");
  const std::vector<StateSection> too_many(limits::sections + 1);
  CHECK(encode_state(too_many).error().kind() == ErrorKind::limit);
}
