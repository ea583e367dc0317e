// SPDX-License-Identifier: Apache-2.0
// Header, configuration, RAM records, block list, XBZRLE, compressed pages.
#include "base/limits.hpp"
#include "protocol/stream/compressed_page.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/header.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "protocol/stream/xbzrle.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/stream_bytes.hpp"

#include <array>
#include <random>

using namespace migrationd;
using namespace migrationd::stream;
using migrationd::test::bytes_of;
using migrationd::test::every_cut_needs_more;
using migrationd::test::operator+;

namespace {

using Page = std::array<std::byte, page_bytes>;

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

std::string error_of_record(const Bytes& bytes, bool block_known = true) {
  const RamRecord record = decode_ram_record(bytes, block_known);
  REQUIRE(record.kind == RamKind::malformed);
  return ram_record_error(bytes, block_known).text();
}

bool record_cuts_need_more(ByteView whole) {
  for (std::size_t length = 0; length < whole.size(); ++length) {
    const RamRecord record = decode_ram_record(whole.first(length), true);
    if (record.kind != RamKind::need_more || record.size <= length || record.size > whole.size()) return false;
  }
  return true;
}

Bytes encoded(std::size_t (*encode)(std::byte*, std::uint64_t, std::string_view) noexcept, std::uint64_t offset,
              std::string_view name) {
  Bytes out(ram_record_header_max);
  out.resize(encode(out.data(), offset, name));
  return out;
}

const Bytes configuration_72 = bytes_of("07 0000000d 'pc-i440fx-7.2'");
const Bytes next_element = bytes_of("01");

}  // namespace

TEST_CASE("StreamHeader.takes_version_3_only") {
  const Bytes good = bytes_of("51 45 56 4d 00 00 00 03");
  ByteWriter out;
  encode_header(out);
  CHECK(Bytes(out.view().begin(), out.view().end()) == good);
  CHECK(decode_header(good).consumed() == 8);
  CHECK(every_cut_needs_more(good, decode_header));
  CHECK(contains(decode_header(bytes_of("51 45 56 4d 00 00 00 02")).error().text(), "obsolete"));
  CHECK(contains(decode_header(bytes_of("51 45 56 4d 00 00 00 04")).error().text(), "version 4"));
}

TEST_CASE("StreamHeader.refuses_a_wrong_magic_by_its_first_byte") {
  CHECK(decode_header(bytes_of("'G'")).failed());
  CHECK(decode_header(bytes_of("'QEV' 00")).failed());
  CHECK(contains(decode_header(bytes_of("'GET / HTTP'")).error().text(), "\"GET \""));
}

TEST_CASE("StreamConfiguration.round_trips_all_subsections") {
  const Bytes wire = configuration_72 + bytes_of("05 1e 'configuration/target-page-bits' 00000001 0000000c") +
                     bytes_of("05 1a 'configuration/capabilities' 00000001 00000001 0f 'x-ignore-shared'") +
                     bytes_of("05 12 'configuration/uuid' 00000001 00112233445566778899aabbccddeeff");
  const Bytes shown = wire + next_element;
  const auto decoded = decode_configuration(shown);
  REQUIRE(decoded.is_ready());
  CHECK(decoded.consumed() == wire.size());
  CHECK(decoded.value().machine_name == "pc-i440fx-7.2");
  CHECK(decoded.value().target_page_bits == 12u);
  CHECK(decoded.value().capabilities == std::vector<std::string>{"x-ignore-shared"});
  CHECK((*decoded.value().uuid)[15] == std::byte{0xff});
  ByteWriter out;
  encode_configuration(out, decoded.value());
  CHECK(Bytes(out.view().begin(), out.view().end()) == wire);
  CHECK(every_cut_needs_more(shown, decode_configuration));
}

TEST_CASE("StreamConfiguration.refuses_what_is_out_of_bounds") {
  const auto error = [](const Bytes& bytes) { return decode_configuration(bytes).error().text(); };
  CHECK(contains(error(bytes_of("01")), "Configuration section missing"));
  CHECK(contains(error(bytes_of("07 00000000")), "name of 0 bytes"));
  CHECK(contains(error(bytes_of("07 7fffffff")), "2147483647"));
  CHECK(contains(error(configuration_72 + bytes_of("05 05 'other' 00000001")), "\"other\" is unknown"));
  CHECK(contains(error(configuration_72 + bytes_of("05 12 'configuration/uuid' 00000002")), "version 2"));
  CHECK(contains(error(configuration_72 + bytes_of("05 1a 'configuration/capabilities' 00000001 00000041")), "65"));
  const Bytes uuid = bytes_of("05 12 'configuration/uuid' 00000001 00112233445566778899aabbccddeeff");
  CHECK(contains(error(configuration_72 + uuid + uuid), "twice"));
}

TEST_CASE("StreamConfiguration.is_compared_as_qemu_does") {
  Configuration received;
  received.machine_name = "pc";
  ConfigurationExpectations local;
  local.machine_name = "pc-i440fx-7.2";
  CHECK(check_configuration(received, local).has_value());
  received.machine_name = "pc-i440fx-7.20";
  CHECK_FALSE(check_configuration(received, local).has_value());
  local.machine_name.reset();
  CHECK(check_configuration(received, local).has_value());

  received.capabilities = std::vector<std::string>{"x-ignore-shared"};
  CHECK(contains(check_configuration(received, local).error().text(),
                 "Capability x-ignore-shared is off, but received capability is on"));
  local.ignore_shared = true;
  CHECK(check_configuration(received, local).has_value());
  local.mapped_ram = true;
  CHECK(contains(check_configuration(received, local).error().text(),
                 "Capability mapped-ram is on, but received capability is off"));
  local.mapped_ram = false;
  received.capabilities->push_back("colo");
  CHECK(contains(check_configuration(received, local).error().text(), "unknown capability colo"));
  received.capabilities->pop_back();

  received.uuid.emplace();
  CHECK(check_configuration(received, local)->size() == 1);
  local.uuid = received.uuid;
  CHECK(check_configuration(received, local)->empty());
  (*local.uuid)[0] = std::byte{1};
  CHECK_FALSE(check_configuration(received, local).has_value());
  local.uuid = received.uuid;
  received.target_page_bits = 14;
  CHECK_FALSE(check_configuration(received, local).has_value());
}

TEST_CASE("RamRecord.decodes_the_worked_example") {
  const Bytes named = bytes_of("0000000000000002 06 'pc.ram' 00");
  RamRecord record = decode_ram_record(named, false);
  CHECK(record.kind == RamKind::zero);
  CHECK(record.named);
  CHECK(record.name == "pc.ram");
  CHECK(record.offset == 0);
  CHECK(record.size == named.size());
  CHECK(record_cuts_need_more(named));

  const Bytes continued = bytes_of("0000000000001022 00");
  record = decode_ram_record(continued, true);
  CHECK(record.kind == RamKind::zero);
  CHECK_FALSE(record.named);
  CHECK(record.offset == 0x1000);
  CHECK(record.size == 9);
  CHECK(record_cuts_need_more(continued));

  CHECK(encoded(encode_zero_record, 0, "pc.ram") == named);
  CHECK(encoded(encode_zero_record, 0x1000, "") == continued);
}

TEST_CASE("RamRecord.decodes_pages_header_first_or_whole") {
  const Bytes header = bytes_of("0000000000003008 01 'a'");
  const Bytes whole = header + Bytes(page_bytes, std::byte{7});
  RamRecord record = decode_ram_header(header, false);
  CHECK(record.kind == RamKind::page);
  CHECK(record.size == header.size());
  CHECK(record.payload_length == page_bytes);
  record = decode_ram_record(whole, false);
  CHECK(record.payload.size() == page_bytes);
  CHECK(record.size == whole.size());
  CHECK(record_cuts_need_more(whole));
  CHECK(encoded(encode_page_header, 0x3000, "a") == header);

  const Bytes next = encoded(encode_page_header, 0x4000, "") + Bytes(page_bytes);
  record = decode_ram_record(next, true);
  CHECK(record.kind == RamKind::page);
  CHECK(record.offset == 0x4000);
  CHECK(record.size == ram_word_bytes + page_bytes);
}

TEST_CASE("RamRecord.decodes_delta_and_compressed_pages") {
  const Bytes delta = bytes_of("0000000000100060 01 0008 10 01 fd ef 0f 02 49 e5");
  RamRecord record = decode_ram_record(delta, true);
  CHECK(record.kind == RamKind::xbzrle);
  CHECK(record.offset == 0x100000);
  CHECK(record.payload.size() == 8);
  CHECK(record_cuts_need_more(delta));
  Bytes header(ram_record_header_max);
  header.resize(encode_xbzrle_header(header.data(), 0x100000, "", 8));
  CHECK(header == Bytes(delta.begin(), delta.begin() + 11));

  const Bytes compressed = bytes_of("0000000000002120 00000003 aabbcc");
  record = decode_ram_record(compressed, true);
  CHECK(record.kind == RamKind::compressed);
  CHECK(record.payload.size() == 3);
  CHECK(record_cuts_need_more(compressed));
  header.resize(ram_record_header_max);
  header.resize(encode_compressed_header(header.data(), 0x2000, "", 3));
  CHECK(header == Bytes(compressed.begin(), compressed.begin() + 12));
}

TEST_CASE("RamRecord.decodes_marks") {
  Bytes out(ram_word_bytes);
  encode_eos(out.data());
  CHECK(out == bytes_of("0000000000000010"));
  CHECK(decode_ram_record(out, false).kind == RamKind::eos);
  CHECK(decode_ram_record(out, true).kind == RamKind::eos);
  encode_multifd_flush(out.data());
  CHECK(out == bytes_of("0000000000000200"));
  CHECK(decode_ram_record(out, true).kind == RamKind::multifd_flush);
  const RamRecord setup = decode_ram_record(bytes_of("0000000001082004"), false);
  CHECK(setup.kind == RamKind::mem_size);
  CHECK(setup.offset == 0x1082000);
}

TEST_CASE("RamRecord.refuses_every_illegal_combination_of_flags") {
  const std::array<std::uint64_t, 11> legal = {0x002, 0x022, 0x008, 0x028, 0x040, 0x060,
                                               0x100, 0x120, 0x004, 0x010, 0x200};
  for (std::uint64_t flags = 0; flags < 0x1000; ++flags) {
    // Room for any header: an empty tail would only say need_more.
    Bytes bytes(32, std::byte{1});
    store_be(bytes.data(), flags);
    const bool ok = std::find(legal.begin(), legal.end(), flags) != legal.end();
    const RamKind kind = decode_ram_header(bytes, true).kind;
    // A fill byte of 1 and lengths of 0x01010101 are illegal too, so only the way of the refusal differs.
    const bool by_flags = contains(ram_record_error(bytes, true).text(), "flag") ||
                          contains(ram_record_error(bytes, true).text(), "hook");
    if (!ok) CHECK((kind == RamKind::malformed && by_flags));
    if (ok) CHECK_FALSE((kind == RamKind::malformed && by_flags));
  }
}

TEST_CASE("RamRecord.says_why_it_refuses") {
  CHECK(contains(error_of_record(bytes_of("0000000000000080 00")), "hook"));
  CHECK(contains(error_of_record(bytes_of("0000000000000001 00")), "obsolete"));
  CHECK(contains(error_of_record(bytes_of("0000000000000022 00"), false), "none was named"));
  CHECK(contains(error_of_record(bytes_of("0000000000000028"), false), "none was named"));
  CHECK(contains(error_of_record(bytes_of("0000000000000002 00 00")), "name is empty"));
  CHECK(contains(error_of_record(bytes_of("0000000000000022 01")), "fill byte 0x01"));
  CHECK(contains(error_of_record(bytes_of("0000000000000002 01 'a' ff")), "fill byte 0xff"));
  CHECK(contains(error_of_record(bytes_of("0000000000001010")), "offset 0x1000"));
  CHECK(contains(error_of_record(bytes_of("0000000000001200")), "offset 0x1000"));
  CHECK(contains(error_of_record(bytes_of("0000000000000060 02 0008")), "encoding 0x02"));
  CHECK(contains(error_of_record(bytes_of("0000000000000060 01 0000")), "0 bytes"));
  CHECK(contains(error_of_record(bytes_of("0000000000000060 01 1001")), "4097 bytes"));
  CHECK(contains(error_of_record(bytes_of("0000000000000120 0000100f")), "4111 bytes"));
  CHECK(contains(error_of_record(bytes_of("0000000000000120 80000000")), "2147483648 bytes"));
}

TEST_CASE("RamRecord.takes_runs_of_zero_pages_at_once") {
  Bytes run(5 * zero_record_bytes);
  CHECK(encode_zero_run(run.data(), 0x7000, 5) == run.size());
  for (std::size_t i = 0; i < 5; ++i) {
    const RamRecord record = decode_ram_record(ByteView(run).subspan(i * zero_record_bytes), true);
    CHECK(record.kind == RamKind::zero);
    CHECK(record.offset == 0x7000 + i * page_bytes);
  }
  CHECK(decode_zero_run(run, 100).pages == 5);
  CHECK(decode_zero_run(run, 3).pages == 3);
  CHECK(decode_zero_run(run, 100).offset == 0x7000);
  CHECK(decode_zero_run(ByteView(run).first(44), 100).pages == 4);
  run[2 * zero_record_bytes + 8] = std::byte{1};
  CHECK(decode_zero_run(run, 100).pages == 2);
  CHECK(decode_zero_run(encoded(encode_zero_record, 0, "a"), 100).pages == 0);
}

TEST_CASE("RamSetup.round_trips_the_worked_example") {
  const std::vector<RamSetupBlock> blocks = {
      {"pc.ram", 0x1000000, {}, {}}, {"/rom@etc/acpi/tables", 0x20000, {}, {}}, {"pc.bios", 0x40000, {}, {}},
      {"pc.rom", 0x20000, {}, {}},   {"/rom@etc/table-loader", 0x1000, {}, {}}, {"/rom@etc/acpi/rsdp", 0x1000, {}, {}}};
  ByteWriter out;
  encode_ram_setup(out, blocks);
  CHECK(out.size() == 0xb7 - 0x2b);
  const RamRecord head = decode_ram_record(out.view(), false);
  CHECK(head.offset == 0x1082000);
  RamSetupDecoder decoder(head.offset, {});
  ByteView rest = out.view().subspan(head.size);
  std::vector<RamSetupBlock> got;
  while (!decoder.done()) {
    auto block = decoder.next(rest);
    REQUIRE(block.is_ready());
    rest = rest.subspan(block.consumed());
    got.push_back(block.value());
  }
  CHECK(got == blocks);
  CHECK(rest.empty());
}

TEST_CASE("RamSetup.sees_page_sizes_only_after_advise") {
  const std::vector<RamSetupBlock> blocks = {
      {"m0", 0x400000, 0x200000, {}}, {"pc.bios", 0x40000, {}, {}}, {"m1", 0x200000, 0x200000, {}}};
  ByteWriter out;
  encode_ram_setup(out, blocks);
  out.u64(ram_flag::eos);
  RamSetupDecoder decoder(0x640000, {false, true});
  ByteView rest = out.view().subspan(ram_word_bytes);
  std::vector<RamSetupBlock> got;
  while (!decoder.done()) {
    CHECK(decoder.next(rest.first(10)).needs_more());
    auto block = decoder.next(rest);
    REQUIRE(block.is_ready());
    rest = rest.subspan(block.consumed());
    got.push_back(block.value());
  }
  CHECK(got == blocks);
  CHECK(rest.size() == ram_word_bytes);
  RamSetupDecoder plain(0x640000, {});
  REQUIRE(plain.next(out.view().subspan(ram_word_bytes)).is_ready());
  CHECK(contains(plain.next(out.view().subspan(ram_word_bytes + 11)).error().text(), "empty name"));
}

TEST_CASE("RamSetup.reads_addresses_with_ignore_shared") {
  const std::vector<RamSetupBlock> blocks = {{"pc.bios", 0x40000, {}, 0xfffc0000}, {"pc.rom", 0x20000, {}, 0xc0000}};
  ByteWriter out;
  encode_ram_setup(out, blocks);
  RamSetupDecoder decoder(0x60000, {true, false});
  const ByteView list = out.view().subspan(ram_word_bytes);
  const auto first = decoder.next(list);
  REQUIRE(first.is_ready());
  CHECK(first.value() == blocks[0]);
  const ByteView second = list.subspan(first.consumed());
  for (std::size_t length = 0; length < second.size(); ++length) {
    CHECK(decoder.next(second.first(length)).needs_more());
  }
  CHECK(decoder.next(second).value() == blocks[1]);
  CHECK(decoder.done());
}

TEST_CASE("RamSetup.refuses_bad_lists") {
  const auto error = [](std::uint64_t total, const Bytes& list, RamSetupOptions options = {}) {
    RamSetupDecoder decoder(total, options);
    ByteView rest = list;
    for (;;) {
      auto block = decoder.next(rest);
      if (!block.is_ready()) return block.error().text();
      rest = rest.subspan(block.consumed());
    }
  };
  CHECK(contains(error(0x2000, bytes_of("01 'a' 0000000000001000 01 'a' 0000000000001000")), "listed twice"));
  CHECK(contains(error(0x2000, bytes_of("01 'a' 0000000000001001")), "not a positive multiple"));
  CHECK(contains(error(0x2000, bytes_of("01 'a' 0000000000000000")), "not a positive multiple"));
  CHECK(contains(error(0x2000, bytes_of("01 'a' 0000000000003000")), "total leaves 0x2000"));
  CHECK(contains(error(0x2000, bytes_of("00 0000000000001000")), "empty name"));
  CHECK(contains(error(limits::ram_total_bytes + page_bytes, bytes_of("01 'a' 0000000000001000")), "above the bound"));
  CHECK(contains(error(limits::ram_total_bytes, bytes_of("01 'a' 0000200000000000")), "above the bound"));
  CHECK(contains(error(0x400000, bytes_of("01 'a' 0000000000200000 0000000000300000"), {false, true}), "page size"));
  Bytes many;
  for (std::size_t i = 0; i <= limits::ram_blocks; ++i) {
    many = many + bytes_of("04") +
           Bytes{std::byte{'b'}, std::byte{'c'}, static_cast<std::byte>(i >> 8 | 1 << 7), static_cast<std::byte>(i)} +
           bytes_of("0000000000001000");
  }
  CHECK(contains(error(limits::ram_total_bytes, many), "more than 4096 blocks"));
}

TEST_CASE("Xbzrle.applies_the_worked_example") {
  Page page{};
  CHECK(bool(xbzrle_decode(bytes_of("10 01 fd ef 0f 02 49 e5"), page)));
  Page expected{};
  expected[16] = std::byte{0xfd};
  expected[0x800] = std::byte{0x49};
  expected[0x801] = std::byte{0xe5};
  CHECK(page == expected);
  Page delta;
  const auto length = xbzrle_encode(Page{}, expected, delta);
  REQUIRE(length.has_value());
  CHECK(Bytes(delta.begin(), delta.begin() + static_cast<std::ptrdiff_t>(*length)) ==
        bytes_of("10 01 fd ef 0f 02 49 e5"));
}

TEST_CASE("Xbzrle.refuses_what_its_rules_forbid") {
  const auto error = [](const Bytes& delta) {
    Page page{};
    const auto result = xbzrle_decode(delta, page);
    return result ? std::string() : result.error().text();
  };
  CHECK(error(bytes_of("00 01 aa")).empty());
  CHECK(contains(error(bytes_of("00 01 aa 00 01 bb")), "no unchanged bytes"));
  CHECK(contains(error(bytes_of("00 00 aa")), "no changed bytes"));
  CHECK(contains(error(bytes_of("05")), "ends inside a run"));
  CHECK(contains(error(bytes_of("05 01")), "ends inside a run"));
  CHECK(contains(error(bytes_of("00 02 aa")), "ends inside changed bytes"));
  CHECK(contains(error(bytes_of("80 80 01 aa")), "more than two bytes"));
  CHECK(contains(error(bytes_of("ff 7f 01 aa")), "skips past"));
  CHECK(contains(error(bytes_of("ff 1f 02 aa bb")), "writes past"));
  CHECK(error(bytes_of("ff 1f 01 aa")).empty());
}

TEST_CASE("Xbzrle.round_trips_random_changes") {
  std::mt19937 random(20);
  Page before{};
  for (auto& byte : before) byte = static_cast<std::byte>(random());
  for (int round = 0; round < 500; ++round) {
    Page after = before;
    const std::size_t runs = random() % 40;
    for (std::size_t i = 0; i < runs; ++i) {
      const std::size_t at = random() % page_bytes;
      const std::size_t length = std::min<std::size_t>(random() % 60, page_bytes - at);
      for (std::size_t k = 0; k < length; ++k) after[at + k] = static_cast<std::byte>(random());
    }
    Page delta;
    const auto length = xbzrle_encode(before, after, delta);
    REQUIRE(length.has_value());
    CHECK((*length == 0) == (before == after));
    Page page = before;
    REQUIRE(bool(xbzrle_decode(ByteView(delta).first(*length), page)));
    CHECK(page == after);
  }
}

TEST_CASE("Xbzrle.gives_up_when_the_delta_does_not_fit") {
  Page before{};
  Page after;
  after.fill(std::byte{1});
  Page delta;
  // One run of 4096 bytes needs 1 + 2 + 4096.
  CHECK_FALSE(xbzrle_encode(before, after, delta).has_value());
  // 1 + 2 + 4093 just fits, if nothing is left to look at.
  std::fill(after.begin(), after.begin() + 3, std::byte{0});
  CHECK(xbzrle_encode(before, after, delta) == 4096u);
  std::fill(after.begin(), after.end(), std::byte{0});
  for (std::size_t i = 0; i < page_bytes; i += 2) after[i] = std::byte{1};
  CHECK_FALSE(xbzrle_encode(before, after, delta).has_value());
}

TEST_CASE("CompressedPage.inflates_to_exactly_a_page") {
  Page page{};
  for (std::size_t i = 0; i < page_bytes; ++i) page[i] = static_cast<std::byte>(i * i >> 4);
  const Bytes compressed = deflate_page(page, 1);
  PageInflater inflater;
  Page out{};
  for (int round = 0; round < 2; ++round) {
    REQUIRE(bool(inflater.inflate(compressed, out)));
    CHECK(out == page);
    CHECK(contains(inflater.inflate(ByteView(compressed).first(compressed.size() - 1), out).error().text(), "cut"));
    CHECK(contains(inflater.inflate(compressed + bytes_of("00"), out).error().text(), "left over"));
    CHECK_FALSE(bool(inflater.inflate(bytes_of("ffff"), out)));
    CHECK_FALSE(bool(inflater.inflate({}, out)));
  }
}

TEST_CASE("CompressedPage.refuses_streams_of_another_size") {
  // zlib streams of 3 bytes and of 5000 zero bytes.
  PageInflater inflater;
  Page out{};
  CHECK(contains(inflater.inflate(bytes_of("789c4b4c4a06 00 024d0127"), out).error().text(), "3 bytes come out"));
  CHECK_FALSE(bool(inflater.inflate(bytes_of("789cedc13101000000c2a0f54f6d0a3fa00000000080b70113880001"), out)));
}
