// SPDX-License-Identifier: Apache-2.0
// The dumps are from real streams of QEMU 7.2.22 and 10.0.13.
#include "protocol/stream/multifd_packet.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/stream_bytes.hpp"

#include <array>
#include <vector>

using namespace migrationd;
using namespace migrationd::stream;
using migrationd::test::bytes_of;

namespace {

// `start` and zeros behind it, to the length of a header.
Bytes header_of(std::string_view start) {
  Bytes out = bytes_of(start);
  out.resize(multifd_header_bytes);
  return out;
}

void put_name(Bytes& header, std::string_view name) {
  std::copy(as_bytes(name).begin(), as_bytes(name).end(), header.begin() + 64);
}

void put_offset(Bytes& header, std::size_t index, std::uint64_t offset) {
  store_be(header.data() + multifd_offsets_at + 8 * index, offset);
}

// 10.0: 96 normal pages from 16 MiB on and 32 zero pages.
Bytes mixed_packet() {
  Bytes header = header_of(
      "11223344 00000001 00000000 00000080 00000060 00060000 0000000000000021 00000020 00000000 00000000 00000000");
  put_name(header, "pc.ram");
  for (std::size_t i = 0; i < 128; ++i) put_offset(header, i, 0x1000000 + i * page_bytes);
  return header;
}

Error refusal(ByteView header, MultifdMethod method = MultifdMethod::none) {
  const auto decoded = decode_multifd_packet(header, method);
  REQUIRE(!decoded.has_value());
  CHECK(decoded.error().kind() == ErrorKind::wire);
  return decoded.error();
}

}  // namespace

TEST_CASE("MultifdHello.is_as_in_the_real_dumps") {
  const Bytes plain = [] {
    Bytes out = bytes_of("11223344 00000001 00000000000000000000000000000000 01");
    out.resize(multifd_hello_bytes);
    return out;
  }();
  auto hello = decode_multifd_hello(plain);
  REQUIRE(hello.has_value());
  CHECK(hello->channel == 1);
  CHECK(hello->uuid == Uuid{});

  Bytes with_uuid = bytes_of("11223344 00000001 01020304 0506 0708 090a 0b0c0d0e0f10 01");
  with_uuid.resize(multifd_hello_bytes);
  hello = decode_multifd_hello(with_uuid);
  REQUIRE(hello.has_value());
  CHECK(hello->uuid[0] == std::byte{1});
  CHECK(hello->uuid[15] == std::byte{16});
  ByteWriter again;
  encode_multifd_hello(again, *hello);
  CHECK(std::ranges::equal(again.view(), with_uuid));
}

TEST_CASE("MultifdHello.reserved_bytes_are_not_looked_at") {
  Bytes bytes(multifd_hello_bytes, std::byte{0xff});
  store_be(bytes.data(), multifd_magic);
  store_be(bytes.data() + 4, multifd_version);
  const auto hello = decode_multifd_hello(bytes);
  REQUIRE(hello.has_value());
  CHECK(hello->channel == 255);
}

TEST_CASE("MultifdHello.refuses_magic_and_version_in_qemus_words") {
  Bytes bytes(multifd_hello_bytes);
  store_be(bytes.data(), magic);
  CHECK(decode_multifd_hello(bytes).error().text() == "multifd: received packet magic 5145564d, expected 11223344");
  store_be(bytes.data(), multifd_magic);
  store_be(bytes.data() + 4, std::uint32_t{2});
  CHECK(decode_multifd_hello(bytes).error().text() == "multifd: received packet version 2, expected 1");
}

TEST_CASE("MultifdHello.is_told_from_its_first_bytes") {
  CHECK(may_begin_multifd({}));
  CHECK(may_begin_multifd(bytes_of("11")));
  CHECK(may_begin_multifd(bytes_of("11223344 00")));
  CHECK_FALSE(may_begin_multifd(bytes_of("1123")));
  CHECK_FALSE(may_begin_multifd(bytes_of("'QEVM'")));
}

TEST_CASE("MultifdPacket.sync_of_10_0_is_as_in_the_real_dump") {
  const Bytes header = header_of("11223344 00000001 00000001 00000000 00000000 00000000 0000000000000000");
  const auto packet = decode_multifd_packet(header, MultifdMethod::zstd);
  REQUIRE(packet.has_value());
  CHECK(packet->sync());
  CHECK_FALSE(packet->has_pages());
  CHECK(packet->payload_bytes() == 0);
  std::array<std::byte, multifd_header_bytes> out{};
  encode_multifd_sync(out, 0);
  CHECK(std::ranges::equal(out, header));
}

TEST_CASE("MultifdPacket.pages_of_10_0_are_as_in_the_real_dump") {
  const Bytes header = mixed_packet();
  const auto packet = decode_multifd_packet(header, MultifdMethod::none);
  REQUIRE(packet.has_value());
  CHECK(packet->normal() == 96);
  CHECK(packet->zero() == 32);
  CHECK(packet->payload_bytes() == 393216);
  CHECK(packet->number() == 33);
  CHECK(packet->block() == "pc.ram");
  CHECK(packet->offset(95) == 0x105f000);

  std::vector<std::uint64_t> offsets;
  for (std::size_t i = 0; i < 128; ++i) offsets.push_back(packet->offset(i));
  std::array<std::byte, multifd_header_bytes> out{};
  encode_multifd_pages(out, {MultifdMethod::none, "pc.ram", 96, offsets, 393216, 33});
  CHECK(std::ranges::equal(out, header));
}

TEST_CASE("MultifdPacket.zero_pages_only_have_no_payload") {
  Bytes header = header_of("11223344 00000001 00000000 00000080 00000000 00000000 0000000000000002 00000080 00000000");
  put_name(header, "pc.ram");
  auto packet = decode_multifd_packet(header, MultifdMethod::none);
  REQUIRE(packet.has_value());
  CHECK(packet->zero() == 128);
  CHECK(packet->payload_bytes() == 0);
  // With a method its bits are there, and the payload's size must be zero.
  store_be(header.data() + 8, std::uint32_t{2});
  CHECK(decode_multifd_packet(header, MultifdMethod::zlib).has_value());
  store_be(header.data() + 20, std::uint32_t{1});
  CHECK(refusal(header, MultifdMethod::zlib).text() == "expected empty packet");
}

TEST_CASE("MultifdPacket.sync_of_7_2_comes_with_pages_and_leaves_an_empty_packet_behind") {
  Bytes merged = header_of("11223344 00000001 00000001 00000080 00000001 00001000 000000000000000d");
  put_name(merged, "/rom@etc/acpi/rsdp");
  put_offset(merged, 1, 0x1354000);  // a leftover
  auto packet = decode_multifd_packet(merged, MultifdMethod::none);
  REQUIRE(packet.has_value());
  CHECK(packet->sync());
  CHECK(packet->normal() == 1);
  CHECK(packet->payload_bytes() == page_bytes);
  CHECK(packet->block() == "/rom@etc/acpi/rsdp");

  // Size, name and offsets are leftovers, whatever they are.
  Bytes empty = header_of("11223344 00000001 00000000 00000080 00000000 00001000 000000000000000d");
  std::fill(empty.begin() + 64, empty.end(), std::byte{0x7f});
  for (const auto method : {MultifdMethod::none, MultifdMethod::zlib}) {
    packet = decode_multifd_packet(empty, method);
    REQUIRE(packet.has_value());
    CHECK_FALSE(packet->sync());
    CHECK_FALSE(packet->has_pages());
    CHECK(packet->payload_bytes() == 0);
  }
}

TEST_CASE("MultifdPacket.the_count_decides_the_length_of_a_plain_payload") {
  Bytes header = mixed_packet();
  store_be(header.data() + 20, std::uint32_t{0xffffffff});
  const auto packet = decode_multifd_packet(header, MultifdMethod::none);
  REQUIRE(packet.has_value());
  CHECK(packet->payload_bytes() == 393216);
}

TEST_CASE("MultifdPacket.unknown_flag_bits_and_reserved_bytes_are_not_looked_at") {
  Bytes header = mixed_packet();
  store_be(header.data() + 8, std::uint32_t{0xffffff80});
  std::fill(header.begin() + 36, header.begin() + 64, std::byte{0xff});
  CHECK(decode_multifd_packet(header, MultifdMethod::none).has_value());
}

TEST_CASE("MultifdPacket.refuses_in_qemus_words") {
  const auto changed = [](std::size_t at, std::uint32_t value) {
    Bytes header = mixed_packet();
    store_be(header.data() + at, value);
    return header;
  };
  CHECK(refusal(changed(0, 0x11223345)).text() == "received packet magic 11223345, expected 11223344");
  CHECK(refusal(changed(4, 0)).text() == "received packet version 0, expected 1");
  CHECK(refusal(changed(12, 129)).text() == "received packet with 129 pages, expected 128");
  CHECK(refusal(changed(16, 129)).text() ==
        "received packet with 129 non-zero pages, which exceeds maximum expected pages 128");
  CHECK(refusal(changed(32, 33)).text() == "received packet with 33 zero pages, expected maximum 32");
  CHECK(refusal(changed(32, 0xffffffff)).text() == "received packet with 4294967295 zero pages, expected maximum 32");
  CHECK(refusal(changed(8, 4)).text().starts_with("flags received 4 flags expected 0"));
  CHECK(refusal(changed(8, 0x40)).text().find("state of a device") != std::string::npos);
  Bytes zlib = changed(8, 2);
  store_be(zlib.data() + 20, std::uint32_t{multifd_payload_max + 1});
  CHECK(refusal(zlib, MultifdMethod::zlib).text() == "next_packet_size 1048577 exceeds allocated 1048576");
}

TEST_CASE("MultifdPacket.refuses_names_without_end_and_offsets_within_a_page") {
  Bytes header = mixed_packet();
  std::fill(header.begin() + 64, header.begin() + 320, std::byte{'a'});
  CHECK(refusal(header).text() == "the block's name is empty or has no end");
  header = mixed_packet();
  std::fill(header.begin() + 64, header.begin() + 320, std::byte{0});
  CHECK(refusal(header).text() == "the block's name is empty or has no end");
  for (const std::size_t index : {0, 95, 96, 127}) {
    header = mixed_packet();
    put_offset(header, index, 0x1000001);
    CHECK(refusal(header).text() == "block 'pc.ram': offset 0x1000001 is not at a page's start");
  }
}
