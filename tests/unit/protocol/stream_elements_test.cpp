// SPDX-License-Identifier: Apache-2.0
// Sections, commands, return path, globalstate.
#include "base/limits.hpp"
#include "protocol/stream/commands.hpp"
#include "protocol/stream/globalstate.hpp"
#include "protocol/stream/return_path.hpp"
#include "protocol/stream/sections.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/stream_bytes.hpp"

using namespace migrationd;
using namespace migrationd::stream;
using migrationd::test::bytes_of;
using migrationd::test::every_cut_needs_more;
using migrationd::test::operator+;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

Bytes copy(ByteView view) { return {view.begin(), view.end()}; }

struct CommandRow {
  const char* wire;
  Command command;
};

std::vector<CommandRow> command_rows() {
  command::PostcopyRamDiscard discard;
  discard.block = "pc.ram";
  discard.ranges = {{0x100000, 0x1f00000}};
  return {
      {"08 0001 0000", command::OpenReturnPath{}},
      {"08 0002 0004 00000001", command::Ping{1}},
      {"08 0003 0010 0000000000001000 0000000000001000",
       command::PostcopyAdvise{command::PostcopyAdvise::Sizes{0x1000, 0x1000}}},
      {"08 0003 0000", command::PostcopyAdvise{}},
      {"08 0004 0000", command::PostcopyListen{}},
      {"08 0005 0000", command::PostcopyRun{}},
      {"08 0006 0019 00 06 'pc.ram' 00 0000000000100000 0000000001f00000", discard},
      {"08 0007 0004 0000326b", command::Packaged{12907}},
      {"08 0008 0000", command::EnableColo{}},
      {"08 0009 0000", command::PostcopyResume{}},
      {"08 000a 0007 06 'pc.ram'", command::RecvBitmap{"pc.ram"}},
      {"08 000b 0000", command::SwitchoverStart{}},
  };
}

struct ReplyRow {
  const char* wire;
  ReturnMessage message;
};

std::vector<ReplyRow> reply_rows() {
  return {
      {"0001 0004 00000000", reply::Shut{0}},
      {"0001 0004 00000001", reply::Shut{1}},
      {"0002 0004 00000001", reply::Pong{1}},
      {"0003 0013 0000000000003000 00001000 06 'pc.ram'", reply::RequestPages{0x3000, 0x1000, "pc.ram"}},
      {"0004 000c 0000000000200000 00200000", reply::RequestPages{0x200000, 0x200000, ""}},
      {"0005 0007 06 'pc.ram'", reply::RecvBitmap{"pc.ram"}},
      {"0006 0004 00000001", reply::ResumeAck{}},
      {"0007 0000", reply::SwitchoverAck{}},
  };
}

}  // namespace

TEST_CASE("StreamCommand.round_trips_every_command") {
  for (const CommandRow& row : command_rows()) {
    const Bytes wire = bytes_of(row.wire);
    const auto decoded = decode_command(wire);
    REQUIRE(decoded.is_ready());
    CHECK((decoded.value() == row.command));
    CHECK(decoded.consumed() == wire.size());
    ByteWriter out;
    encode_command(out, row.command);
    CHECK(copy(out.view()) == wire);
    CHECK(every_cut_needs_more(wire, decode_command));
    CHECK(every_cut_needs_more(wire, decode_element));
  }
}

TEST_CASE("StreamCommand.refuses_unknown_numbers_and_wrong_lengths_at_once") {
  const auto error = [](const char* wire) { return decode_command(bytes_of(wire)).error().text(); };
  CHECK(contains(error("08 0000"), "command 0x0 is unknown"));
  CHECK(contains(error("08 000c"), "command 0xc is unknown"));
  CHECK(contains(error("08 0002 0005"), "PING: length 5"));
  CHECK(contains(error("08 0001 0001"), "OPEN_RETURN_PATH: length 1"));
  CHECK(contains(error("08 0003 0008"), "POSTCOPY_ADVISE: length 8"));
  CHECK(contains(error("08 0007 ffff"), "PACKAGED: length 65535"));
  CHECK(contains(error("08 000a 0007 05 'pc.ram'"), "RECV_BITMAP: length 7"));
  CHECK(contains(error("08 000a 0001 00"), "empty"));
  CHECK(contains(error("07"), "where 0x08 is due"));
}

TEST_CASE("StreamCommand.refuses_malformed_discards") {
  const auto error = [](const char* wire) { return decode_command(bytes_of(wire)).error().text(); };
  CHECK(contains(error("08 0006 0000"), "length 0"));
  CHECK(contains(error("08 0006 0004 00 01 'a' 00"), "length 4"));
  CHECK(contains(error("08 0006 0014 01 01 'a' 00 0000000000001000 0000000000001000"), "version 1"));
  CHECK(contains(error("08 0006 0014 00 01 'a' 01 0000000000001000 0000000000001000"), "not terminated"));
  CHECK(contains(error("08 0006 0013 00 00 00 0000000000001000 0000000000001000"), "empty"));
  CHECK(contains(error("08 0006 0015 00 01 'a' 00 0000000000001000 0000000000001000 00"), "length 21"));
  CHECK(discard_ranges_max("pc.ram") == 4095);
}

TEST_CASE("StreamElement.decodes_sections") {
  const Bytes start = bytes_of("01 00000002 03 'ram' 00000000 00000004");
  const SectionHeader ram{2, "ram", 0, 4};
  const auto element = decode_element(start);
  REQUIRE(element.is_ready());
  CHECK(std::get<SectionStart>(element.value()).header == ram);
  CHECK(every_cut_needs_more(start, decode_element));
  ByteWriter out;
  encode_section_start(out, ram);
  CHECK(copy(out.view()) == start);

  const Bytes full = bytes_of("04 00000000 05 'timer' 00000000 00000002");
  CHECK(std::get<SectionFull>(decode_element(full).value()).header.name == "timer");
  CHECK(every_cut_needs_more(full, decode_element));
  CHECK(std::get<SectionPart>(decode_element(bytes_of("02 00000007")).value()).section_id == 7);
  CHECK(std::get<SectionEnd>(decode_element(bytes_of("03 00000007")).value()).section_id == 7);
  CHECK(every_cut_needs_more(bytes_of("02 00000007"), decode_element));
  CHECK(std::holds_alternative<EndOfStream>(decode_element(bytes_of("00")).value()));
  out.clear();
  encode_section_part(out, 7);
  encode_section_end(out, 7);
  encode_footer(out, 7);
  encode_eof(out);
  CHECK(copy(out.view()) == bytes_of("02 00000007 03 00000007 7e 00000007 00"));
}

TEST_CASE("StreamElement.refuses_types_that_are_none") {
  for (const char* wire : {"05", "06", "07", "09", "7e", "ff"}) CHECK(decode_element(bytes_of(wire)).failed());
  CHECK(contains(decode_element(bytes_of("06")).error().text(), "description before the end"));
  CHECK(decode_element(bytes_of("08 000c")).failed());
}

TEST_CASE("StreamFooter.must_repeat_the_id") {
  const auto decode = [](ByteView bytes) { return decode_footer(bytes, 2, "ram"); };
  CHECK(decode(bytes_of("7e 00000002")).is_ready());
  CHECK(every_cut_needs_more(bytes_of("7e 00000002"), decode));
  CHECK(contains(decode(bytes_of("7e 0000000a")).error().text(), "read 0xa expected 0x2"));
  CHECK(contains(decode(bytes_of("00")).error().text(), "Missing section footer for ram"));
}

TEST_CASE("StreamDescription.header_is_bounded") {
  CHECK(decode_description_header(bytes_of("06 00018159")).value() == 0x18159);
  CHECK(every_cut_needs_more(bytes_of("06 00000000"), decode_description_header));
  CHECK(contains(decode_description_header(bytes_of("00")).error().text(), "but got 0"));
  CHECK(decode_description_header(bytes_of("06 04000001")).error().kind() == ErrorKind::limit);
  ByteWriter out;
  encode_description(out, "");
  CHECK(copy(out.view()) == bytes_of("06 00000000"));
}

TEST_CASE("ReturnPath.round_trips_every_message") {
  for (const ReplyRow& row : reply_rows()) {
    const Bytes wire = bytes_of(row.wire);
    const auto decoded = decode_return_message(wire);
    REQUIRE(decoded.is_ready());
    CHECK((decoded.value() == row.message));
    CHECK(decoded.consumed() == wire.size());
    ByteWriter out;
    encode_return_message(out, row.message);
    CHECK(copy(out.view()) == wire);
    CHECK(every_cut_needs_more(wire, decode_return_message));
  }
}

TEST_CASE("ReturnPath.refuses_bad_frames") {
  const auto error = [](const char* wire) { return decode_return_message(bytes_of(wire)).error().text(); };
  CHECK(contains(error("0000"), "unknown"));
  CHECK(contains(error("0008"), "unknown"));
  CHECK(contains(error("0001 0005"), "SHUT: length 5"));
  CHECK(contains(error("0003 000c"), "REQ_PAGES_ID: length 12"));
  CHECK(contains(error("0003 0201"), "length 513"));
  CHECK(contains(error("0003 000d 0000000000003000 00001000 00"), "empty"));
  CHECK(contains(error("0003 000e 0000000000003000 00001000 02 'a'"), "length 14"));
  CHECK(contains(error("0004 000c 0000000000003001 00001000"), "whole pages"));
  CHECK(contains(error("0004 000c 0000000000003000 00000000"), "whole pages"));
  CHECK(contains(error("0006 0004 00000002"), "not 1"));
  CHECK(contains(error("0007 0001"), "SWITCHOVER_ACK: length 1"));
}

TEST_CASE("ReturnPath.carries_a_received_bitmap") {
  const Bytes wire = bytes_of("0000000000000008 ffffffff00000000 0123456789abcdef");
  const auto decode = [](ByteView bytes) { return decode_received_bitmap(bytes, 32); };
  const auto decoded = decode(wire);
  REQUIRE(decoded.is_ready());
  CHECK(copy(decoded.value()) == bytes_of("ffffffff00000000"));
  CHECK(every_cut_needs_more(wire, decode));
  ByteWriter out;
  encode_received_bitmap(out, decoded.value());
  CHECK(copy(out.view()) == wire);
  CHECK(received_bitmap_bytes(1) == 8);
  CHECK(received_bitmap_bytes(64) == 8);
  CHECK(received_bitmap_bytes(65) == 16);
  CHECK(decode_received_bitmap(bytes_of("0000000000000010"), 32).failed());
  CHECK(decode_received_bitmap(wire, 31).failed());
  CHECK(decode(bytes_of("0000000000000008 ffffffff00000000 0123456789abcdee")).failed());
}

TEST_CASE("Globalstate.is_read_and_patched") {
  const Bytes body = bytes_of("0000000a 'prelaunch'") + Bytes(91);
  CHECK(*read_run_state(body) == "prelaunch");
  const auto patched = with_run_state(body, "running");
  REQUIRE(patched.has_value());
  CHECK(*patched == bytes_of("00000008 'running'") + Bytes(93));
  CHECK(*make_globalstate("prelaunch") == body);
  Bytes flags = body;
  flags[4 + 32] = std::byte{1};
  flags[4 + 33] = std::byte{1};
  CHECK((*with_run_state(flags, "paused"))[4 + 33] == std::byte{1});
}

TEST_CASE("Globalstate.refuses_bad_bodies_and_names") {
  const Bytes body = bytes_of("0000000a 'prelaunch'") + Bytes(91);
  CHECK_FALSE(read_run_state(ByteView(body).first(103)).has_value());
  CHECK_FALSE(read_run_state(bytes_of("00000001") + Bytes(100)).has_value());
  CHECK_FALSE(read_run_state(bytes_of("0000000b 'prelaunch'") + Bytes(91)).has_value());
  CHECK_FALSE(read_run_state(bytes_of("00000065") + Bytes(100, std::byte{'x'})).has_value());
  CHECK_FALSE(with_run_state(body, "").has_value());
  CHECK_FALSE(with_run_state(body, std::string(32, 'x')).has_value());
  CHECK(with_run_state(body, std::string(31, 'x')).has_value());
}
