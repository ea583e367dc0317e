// SPDX-License-Identifier: Apache-2.0
// The description, its walk, the footer scan and the end of the stream, on streams QEMU wrote and on hostile ones.
#include "base/limits.hpp"
#include "protocol/stream/compressed_page.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/device_tail.hpp"
#include "protocol/stream/footer_scan.hpp"
#include "protocol/stream/globalstate.hpp"
#include "protocol/stream/header.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "protocol/stream/sections.hpp"
#include "protocol/stream/vmdescription.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/stream_bytes.hpp"
#include "tests/unit/protocol/stream_fixture.hpp"

#include <fmt/format.h>

#include <map>

using namespace migrationd;
using namespace migrationd::stream;
using migrationd::test::bytes_of;
using migrationd::test::fixture;
using migrationd::test::operator+;

namespace {

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

DeviceSection section(std::uint32_t id, std::string name, Bytes body) {
  DeviceSection out;
  out.section_id = id;
  out.name = std::move(name);
  out.version_id = 1;
  out.body = std::move(body);
  return out;
}

Bytes encoded(const std::vector<DeviceSection>& sections, const std::optional<std::string>& description) {
  ByteWriter out;
  for (const DeviceSection& one : sections) encode_device_section(out, one);
  encode_eof(out);
  if (description) encode_description(out, *description);
  return std::move(out).take();
}

Bytes encoded(const DeviceTailContents& contents) { return encoded(contents.sections, contents.description); }

std::vector<DeviceSection> two_sections() {
  Bytes state = *make_globalstate("paused");
  return {section(3, "timer", bytes_of("0102030405060708")), section(4, "globalstate", std::move(state))};
}

// Old-style entries: name and size.
std::string describe(const std::vector<DeviceSection>& sections) {
  std::string out = R"({"page_size": 4096, "devices": [)";
  for (const DeviceSection& one : sections) {
    out += fmt::format(R"({}{{"name": "{}", "instance_id": {}, "size": {}, "fields": []}})",
                       &one == &sections[0] ? "" : ", ", one.name, one.instance_id, one.body.size());
  }
  return out + "]}";
}

// Feeds in pieces; every answer but the last must be need_more.
DeviceTailContents fed_in_pieces(ByteView whole, std::size_t piece, std::vector<DeviceSection> early = {}) {
  DeviceTail tail(1, std::move(early));
  for (std::size_t at = 0; at < whole.size(); at += piece) {
    const std::size_t length = std::min(piece, whole.size() - at);
    const auto progress = tail.feed(whole.subspan(at, length));
    REQUIRE(progress.has_value());
    CHECK((*progress == TailProgress::complete) == (at + length == whole.size()));
  }
  return std::move(tail).take();
}

// What a destination does with a whole precopy stream, in little: returns the offset behind END ram's footer.
struct Totals {
  std::map<RamKind, std::size_t> records;
  std::size_t blocks = 0;
  std::uint32_t ram_id = 0;
  std::size_t tail = 0;
};

std::size_t walk_ram_body(ByteView rest, bool& block_known, Totals& totals) {
  std::size_t at = 0;
  for (;;) {
    const RamRecord record = decode_ram_record(rest.subspan(at), block_known);
    REQUIRE(record.kind != RamKind::malformed);
    REQUIRE(record.kind != RamKind::need_more);
    ++totals.records[record.kind];
    at += record.size;
    block_known = block_known || record.named;
    if (record.kind == RamKind::eos) return at;
    if (record.kind != RamKind::mem_size) continue;
    RamSetupDecoder setup(record.offset, {});
    while (!setup.done()) {
      const auto block = setup.next(rest.subspan(at));
      REQUIRE(block.is_ready());
      at += block.consumed();
      ++totals.blocks;
    }
  }
}

Totals walk_stream(ByteView stream) {
  Totals totals;
  bool block_known = false;
  std::size_t at = decode_header(stream).consumed();
  at += decode_configuration(stream.subspan(at)).consumed();
  for (;;) {
    const auto element = decode_element(stream.subspan(at));
    REQUIRE(element.is_ready());
    at += element.consumed();
    if (const auto* start = std::get_if<SectionStart>(&element.value())) totals.ram_id = start->header.section_id;
    at += walk_ram_body(stream.subspan(at), block_known, totals);
    REQUIRE(decode_footer(stream.subspan(at), totals.ram_id, "ram").is_ready());
    at += footer_bytes;
    if (std::holds_alternative<SectionEnd>(element.value())) break;
  }
  totals.tail = at;
  return totals;
}

}  // namespace

TEST_CASE("Stream.of_qemu_7_2_is_walked_to_its_last_byte") {
  const Bytes stream = fixture("qemu-7.2-pc.gz");
  const Totals totals = walk_stream(stream);
  CHECK(totals.ram_id == 2);
  CHECK(totals.blocks == 6);
  // 0x1082000 bytes in pages, each of which came once.
  CHECK(totals.records.at(RamKind::zero) + totals.records.at(RamKind::page) == 0x1082);
  const ByteView tail_bytes = ByteView(stream).subspan(totals.tail);
  DeviceTail tail(totals.ram_id);
  REQUIRE(*tail.feed(tail_bytes) == TailProgress::complete);
  const DeviceTailContents contents = std::move(tail).take();
  CHECK(contents.proof == TailProof::description);
  CHECK(contents.sections.front().name == "timer");
  CHECK(contents.sections.front().body.size() == 24);
  const auto is_globalstate = [](const DeviceSection& one) { return one.name == "globalstate"; };
  const auto globalstate = std::find_if(contents.sections.begin(), contents.sections.end(), is_globalstate);
  REQUIRE(globalstate != contents.sections.end());
  CHECK(*read_run_state(globalstate->body) == "prelaunch");
  CHECK(encoded(contents) == Bytes(tail_bytes.begin(), tail_bytes.end()));
}

TEST_CASE("Stream.of_a_rich_q35_is_split_the_same_with_and_without_its_description") {
  const Bytes tail_bytes = fixture("qemu-7.2-q35-rich.tail.gz");
  const DeviceTailContents contents = fed_in_pieces(tail_bytes, 32768);
  CHECK(contents.proof == TailProof::description);
  CHECK(contents.sections.size() > 40);
  CHECK(encoded(contents) == tail_bytes);

  DeviceTail scanned(2);
  REQUIRE(scanned.feed(encoded(contents.sections, std::nullopt)).has_value());
  REQUIRE(*scanned.closed() == TailProgress::complete);
  const DeviceTailContents again = std::move(scanned).take();
  CHECK(again.proof == TailProof::footers);
  CHECK(again.sections == contents.sections);
  CHECK_FALSE(again.description.has_value());
}

TEST_CASE("Stream.with_suppressed_description_ends_by_close_or_by_quiet") {
  const Bytes tail_bytes = fixture("qemu-7.2-pc-no-description.tail.gz");
  DeviceTail by_close(2);
  CHECK(*by_close.feed(tail_bytes) == TailProgress::need_more);
  CHECK(*by_close.closed() == TailProgress::complete);
  CHECK(encoded(std::move(by_close).take()) == tail_bytes);
  DeviceTail by_quiet(2);
  CHECK(*by_quiet.feed(ByteView(tail_bytes).first(tail_bytes.size() - 1)) == TailProgress::need_more);
  CHECK(*by_quiet.quiet() == TailProgress::need_more);
  CHECK(*by_quiet.feed(ByteView(tail_bytes).last(1)) == TailProgress::need_more);
  CHECK(*by_quiet.quiet() == TailProgress::complete);
}

TEST_CASE("Stream.with_ignore_shared_has_its_capability_and_addresses") {
  const Bytes head = fixture("qemu-7.2-ignore-shared.head.gz");
  const auto configuration = decode_configuration(ByteView(head).subspan(header_bytes));
  REQUIRE(configuration.is_ready());
  CHECK(configuration.value().capabilities == std::vector<std::string>{"x-ignore-shared"});
  const ByteView start = ByteView(head).subspan(header_bytes + configuration.consumed());
  const auto element = decode_element(start);
  REQUIRE(element.is_ready());
  ByteView rest = start.subspan(element.consumed());
  const RamRecord setup = decode_ram_record(rest, false);
  RamSetupDecoder decoder(setup.offset, {true, false});
  rest = rest.subspan(setup.size);
  std::map<std::string, std::uint64_t> addresses;
  while (!decoder.done()) {
    const auto block = decoder.next(rest);
    REQUIRE(block.is_ready());
    addresses[block.value().name] = *block.value().address;
    rest = rest.subspan(block.consumed());
  }
  CHECK(addresses.at("pc.bios") == 0xfffc0000);
  CHECK(addresses.at("pc.rom") == 0xc0000);
  CHECK(decode_ram_record(rest, false).kind == RamKind::eos);
}

TEST_CASE("Stream.with_compress_inflates_to_pages") {
  const Bytes records = fixture("qemu-7.2-compress.records.gz");
  PageInflater inflater;
  std::array<std::byte, page_bytes> page;
  std::size_t at = 0;
  std::size_t compressed = 0;
  while (at < records.size()) {
    const RamRecord record = decode_ram_record(ByteView(records).subspan(at), true);
    REQUIRE(record.size > 0);
    REQUIRE(record.kind != RamKind::need_more);
    REQUIRE(record.kind != RamKind::malformed);
    at += record.size;
    if (record.kind != RamKind::compressed) continue;
    REQUIRE(bool(inflater.inflate(record.payload, page)));
    ++compressed;
  }
  CHECK(compressed == 24);
}

TEST_CASE("DeviceTail.is_complete_with_the_last_byte_however_it_is_cut") {
  const auto sections = two_sections();
  const std::string description = describe(sections);
  const Bytes whole = encoded(sections, description);
  for (const std::size_t piece : {1u, 2u, 3u, 7u, 64u, 4096u}) {
    const DeviceTailContents contents = fed_in_pieces(whole, piece);
    CHECK(contents.proof == TailProof::description);
    CHECK(contents.sections == sections);
    CHECK(contents.description == description);
  }
}

TEST_CASE("DeviceTail.that_is_cut_anywhere_is_an_error_at_close") {
  const auto sections = two_sections();
  const Bytes whole = encoded(sections, describe(sections));
  std::size_t at_eof = 0;
  for (std::size_t length = 0; length < whole.size(); ++length) {
    DeviceTail tail(1);
    REQUIRE(*tail.feed(ByteView(whole).first(length)) == TailProgress::need_more);
    const auto end = tail.closed();
    // Cut behind the EOF byte it is a stream without description, which QEMU takes too.
    if (end.has_value()) ++at_eof;
    if (end.has_value()) CHECK(length == encoded(sections, std::nullopt).size());
  }
  CHECK(at_eof == 1);
}

TEST_CASE("DeviceTail.takes_dummies_of_every_kind") {
  const auto sections = two_sections();
  for (const char* dummy : {"", "{}", R"({"page_size": 4096})", R"({"devices": []})", "xyz"}) {
    const DeviceTailContents contents = fed_in_pieces(encoded(sections, std::string(dummy)), 4096);
    CHECK(contents.proof == TailProof::footers);
    CHECK(contents.sections == sections);
    CHECK(contents.description == std::string(dummy));
  }
}

TEST_CASE("DeviceTail.falls_back_to_names_when_sizes_do_not_fit") {
  const auto sections = two_sections();
  auto wrong = sections;
  wrong[0].body.resize(9);
  const DeviceTailContents contents = fed_in_pieces(encoded(sections, describe(wrong)), 4096);
  CHECK(contents.proof == TailProof::names);
  CHECK(contents.sections == sections);
}

TEST_CASE("DeviceTail.refuses_a_description_of_another_machine") {
  const auto sections = two_sections();
  auto other = sections;
  other[0].name = "tamer";
  const Bytes whole = encoded(sections, describe(other));
  DeviceTail tail(1);
  CHECK(*tail.feed(whole) == TailProgress::need_more);
  CHECK(contains(tail.quiet().error().text(), "'timer' instance 0 (id 3) stands where 'tamer'"));
  CHECK(contains(tail.closed().error().text(), "does not fit"));
}

TEST_CASE("DeviceTail.refuses_a_section_with_the_id_of_another") {
  const std::uint32_t ram_id = 1;
  for (const std::uint32_t taken : {ram_id, 4u}) {
    auto sections = two_sections();
    sections[0].section_id = taken;
    DeviceTail tail(ram_id);
    REQUIRE(tail.feed(encoded(sections, describe(sections))).has_value());
    const auto end = tail.quiet();
    REQUIRE_FALSE(end.has_value());
    CHECK(contains(end.error().text(), fmt::format("the id {} of another section", taken)));
  }
}

TEST_CASE("DeviceTail.refuses_bytes_behind_the_end") {
  const auto sections = two_sections();
  const Bytes whole = encoded(sections, describe(sections));
  DeviceTail tail(1);
  CHECK(*tail.feed(whole + bytes_of("ff")) == TailProgress::need_more);
  CHECK(contains(tail.closed().error().text(), "bytes follow the description"));
  DeviceTail later(1);
  CHECK(*later.feed(whole) == TailProgress::complete);
  CHECK(*later.feed(bytes_of("ff")) == TailProgress::need_more);
  CHECK(contains(later.closed().error().text(), "bytes follow the description"));
}

TEST_CASE("DeviceTail.is_not_fooled_by_an_end_inside_a_body") {
  auto sections = two_sections();
  const auto forged = two_sections();
  // A whole tail, and a footer with an empty description, inside the first section.
  sections[0].body =
      encoded(forged, describe(forged)) + bytes_of("7e 00000003 00 06 00000000 7e 00000003 00 06 00000002 '{}'");
  const Bytes whole = encoded(sections, describe(sections));
  for (const std::size_t piece : {1u, 100u, 100000u}) {
    DeviceTail tail(1);
    for (std::size_t at = 0; at < whole.size(); at += piece) {
      REQUIRE(tail.feed(ByteView(whole).subspan(at, std::min(piece, whole.size() - at))).has_value());
    }
    REQUIRE(*tail.closed() == TailProgress::complete);
    CHECK(encoded(std::move(tail).take()) == whole);
  }
}

TEST_CASE("DeviceTail.skips_a_switchover_start_and_refuses_other_elements") {
  const auto sections = two_sections();
  const Bytes whole = encoded(sections, describe(sections));
  CHECK(fed_in_pieces(bytes_of("08 000b 0000") + whole, 1).sections == sections);
  CHECK(DeviceTail(1).feed(bytes_of("08 0001 0000")).has_error());
  CHECK(DeviceTail(1).feed(bytes_of("08 000b 0000 08 000b 0000")).has_error());
  CHECK(contains(DeviceTail(1).feed(bytes_of("02")).error().text(), "0x02"));
}

TEST_CASE("DeviceTail.checks_early_sections_against_the_description") {
  auto sections = two_sections();
  sections.insert(sections.begin(), section(9, "vm0/virtio-mem-device-early", bytes_of("0102")));
  const std::string description = describe(sections);
  std::vector<DeviceSection> early = {sections[0]};
  const Bytes rest = encoded({sections[1], sections[2]}, description);
  const DeviceTailContents contents = fed_in_pieces(rest, 64, early);
  CHECK(contents.proof == TailProof::description);
  CHECK(contents.sections.size() == 3);
  CHECK(contents.sections[0].early);
  early[0].body.push_back(std::byte{0});
  early[0].name = "other";
  DeviceTail tail(1, early);
  CHECK(*tail.feed(rest) == TailProgress::need_more);
  CHECK(contains(tail.quiet().error().text(), "early section 'other'"));
}

TEST_CASE("DeviceTail.stays_linear_on_false_ends") {
  // Every 13 bytes an end whose text would be 64 MiB long, and every few feeds one that ends right there.
  Bytes hostile = bytes_of("04 00000003 01 'a' 00000000 00000001");
  const Bytes far = bytes_of("7e 00000003 00 06 03ffffff '{\"'");
  const Bytes near = bytes_of("7e 00000003 00 06 00000002 '{}'");
  while (hostile.size() < 4000000) hostile.insert(hostile.end(), far.begin(), far.end());
  DeviceTail tail(1);
  REQUIRE(tail.feed(hostile).has_value());
  bool refused = false;
  for (int i = 0; i < 20000 && !refused; ++i) refused = tail.feed(near).has_error();
  // The budget of footer scans ends it, at the same amount of work whatever the number of feeds.
  CHECK(refused);
}

TEST_CASE("FooterScan.comes_back_from_false_borders") {
  auto sections = two_sections();
  // A footer and a believable header with the id of a later section, then one with a free id that leads nowhere.
  sections[0].body = bytes_of("7e 00000003 04 00000004 01 'x' 00000000 00000001") +
                     bytes_of("7e 00000003 04 00000063 01 'y' 00000000 00000001 aa");
  const Bytes whole = encoded(sections, std::nullopt);
  ScanBudget budget{1 << 20};
  ScanRules rules;
  rules.ram_section_id = 1;
  rules.required_name = "globalstate";
  const auto spans = scan_sections(ByteView(whole).first(whole.size() - 1), rules, budget);
  REQUIRE(spans.has_value());
  REQUIRE(spans->size() == 2);
  CHECK((*spans)[0].body_length == sections[0].body.size());
  ScanBudget small{100};
  const auto refused = scan_sections(ByteView(whole).first(whole.size() - 1), rules, small);
  CHECK(refused.error().kind() == ErrorKind::limit);
}

TEST_CASE("EarlySectionScan.waits_for_the_element_behind_the_footer") {
  const Bytes body = bytes_of("aa 7e 00000009 ff 7e 00000009 02 00000005 bb");
  const Bytes whole = body + bytes_of("7e 00000009 02 00000001");
  EarlySectionScan scan(9, 1);
  for (std::size_t length = 0; length < whole.size(); ++length) {
    const auto answer = scan.feed(ByteView(whole).first(length));
    REQUIRE(answer.needs_more());
    CHECK(answer.needed() > length);
    CHECK(answer.needed() <= whole.size());
  }
  const auto answer = scan.feed(whole);
  REQUIRE(answer.is_ready());
  CHECK(answer.value() == body.size());
  CHECK(answer.consumed() == body.size() + footer_bytes);
  for (const char* next : {"08 000b 0000", "03 00000001", "04 00000008 01 'a' 00000000 00000001"}) {
    CHECK(EarlySectionScan(9, 1).feed(body + bytes_of("7e 00000009") + bytes_of(next)).value() == body.size());
  }
}

TEST_CASE("Description.walks_structs_arrays_and_subsections") {
  const std::string text = R"({"page_size": 4096, "devices": [{"name": "d", "instance_id": 2, "vmsd_name": "d",
    "version": 3, "fields": [
      {"name": "a", "type": "uint32", "size": 4},
      {"name": "b", "array_len": 3, "type": "struct", "struct": {"vmsd_name": "e", "version": 1,
         "fields": [{"name": "x", "type": "uint8", "size": 1}]}, "size": 1},
      {"name": "t", "type": "tmp", "vmsd_name": "tmp", "version": 0, "fields": [], "fields": [], "size": 2},
      {"name": "c", "array_len": 2, "type": "uint16", "size": 2}],
    "subsections": [{"vmsd_name": "d/s", "version": 7, "fields": [{"name": "y", "type": "bool", "size": 1}]}]}]})";
  const auto description = parse_description(text);
  REQUIRE(description.has_value());
  CHECK(description->page_size == 4096);
  REQUIRE(description->devices.size() == 1);
  const Bytes body = Bytes(13, std::byte{1}) + bytes_of("05 03 'd/s' 00000007 01");
  WalkBudget budget{1000};
  CHECK(*walk_state(description->devices[0].state, body + bytes_of("7e"), budget) == body.size());
  CHECK_FALSE(walk_state(description->devices[0].state, ByteView(body).first(body.size() - 1), budget).has_value());
  CHECK_FALSE(
      walk_state(description->devices[0].state, Bytes(13) + bytes_of("05 03 'd/t' 00000007 01"), budget).has_value());
  WalkBudget small{3};
  CHECK(walk_state(description->devices[0].state, body, small).error().kind() == ErrorKind::limit);
}

TEST_CASE("Description.refuses_hostile_texts") {
  const auto error = [](std::string_view text) { return parse_description(text).error().text(); };
  CHECK(contains(error(""), "not JSON"));
  CHECK(contains(error("{"), "not JSON"));
  CHECK(contains(error("[]"), "not an object"));
  CHECK(contains(error("7"), "not an object"));
  CHECK(contains(error("{}"), "no devices"));
  CHECK(contains(error(R"({"devices": [[]]})"), "array where"));
  CHECK(contains(error(R"({"devices": [], "devices": []})"), "two"));
  CHECK(contains(error(R"({"devices": [{"vmsd_name": "a"}]})"), "no name"));
  CHECK(contains(error(R"({"devices": [{"name": "a"}]})"), "neither"));
  CHECK(contains(error(R"({"devices": [{"name": "a", "size": -1}]})"), "negative"));
  CHECK(contains(error(R"({"devices": [{"name": "a", "vmsd_name": "a", "fields": [{"name": "f"}]}]})"), "no size"));
  CHECK(contains(error(R"({"devices": [{"name": "a", "instance_id": 4294967296}]})"), "too large"));
  CHECK(contains(error(R"({"devices": [{"name": ")" + std::string(256, 'a') + R"("}]})"), "longer than 255"));
  CHECK(contains(error(R"({"x": )" + std::string(100000, '[')), "nested"));
  std::string many = R"({"devices": [{"name": "a", "vmsd_name": "a", "fields": [{"size":0})";
  for (std::size_t i = 0; i < limits::description_nodes; ++i) many += R"(,{"size":0})";
  CHECK(contains(error(many + "]}]}"), "nodes"));
}

TEST_CASE("Description.of_endless_arrays_costs_only_its_budget") {
  const std::string text = R"({"devices": [{"name": "a", "vmsd_name": "a", "fields": [
    {"name": "e", "array_len": 9223372036854775807, "type": "struct", "size": 0,
     "struct": {"vmsd_name": "e", "fields": []}},
    {"name": "f", "array_len": 9223372036854775807, "type": "uint8", "size": 3}]}]})";
  const auto description = parse_description(text);
  REQUIRE(description.has_value());
  WalkBudget budget{1000};
  CHECK(contains(walk_state(description->devices[0].state, Bytes(100), budget).error().text(), "overflows"));
  CHECK(budget.steps > 900);
}
