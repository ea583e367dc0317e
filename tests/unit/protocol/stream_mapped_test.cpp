// SPDX-License-Identifier: Apache-2.0
// Mapped-ram's header and bitmap, with the bytes of a real file of QEMU 10.0.
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/mapped_ram.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/stream_bytes.hpp"

using namespace migrationd;
using namespace migrationd::stream;
using migrationd::test::bytes_of;

namespace {

// pc.bios in that file.
constexpr const char* bios_header = "00000001 0000000000001000 000000000422002c 0000000004300000";
constexpr const char* bios_bitmap = "0000feffffffffff";

std::string refusal(std::string_view hex_text) {
  const auto decoded = decode_mapped_ram_header(bytes_of(hex_text));
  REQUIRE(decoded.failed());
  return decoded.error().text();
}

}  // namespace

TEST_CASE("MappedRam.header_is_that_of_QEMU") {
  const Bytes bytes = bytes_of(bios_header);
  REQUIRE(bytes.size() == mapped_ram_header_bytes);
  const auto decoded = decode_mapped_ram_header(bytes);
  REQUIRE(decoded.is_ready());
  CHECK(decoded.value() == MappedRamHeader{1, 4096, 0x422002c, 0x4300000});
  CHECK(decoded.consumed() == mapped_ram_header_bytes);
  ByteWriter out;
  encode_mapped_ram_header(out, decoded.value());
  CHECK(std::move(out).take() == bytes);
}

TEST_CASE("MappedRam.a_cut_header_asks_for_the_rest") {
  const Bytes bytes = bytes_of(bios_header);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const auto decoded = decode_mapped_ram_header(ByteView(bytes).first(size));
    REQUIRE(decoded.needs_more());
    CHECK(decoded.needed() == mapped_ram_header_bytes);
  }
}

TEST_CASE("MappedRam.refuses_headers_it_does_not_understand") {
  CHECK(refusal("00000002 0000000000001000 000000000000008e 0000000000100000") ==
        "Migration mapped-ram capability version not supported (expected <= 1, got 2)");
  CHECK(refusal("00000001 0000000000000000 000000000000008e 0000000000100000") ==
        "the file's pages are of 0 bytes, this machine's of 4096");
  CHECK(refusal("00000001 0000000000004000 000000000000008e 0000000000100000") ==
        "the file's pages are of 16384 bytes, this machine's of 4096");
  CHECK(refusal("00000001 0000000000001000 000000000000008e 0000000000100001") ==
        "pages at 0x100001: region has bad alignment");
  // Version 0 is taken, as QEMU takes it.
  CHECK(decode_mapped_ram_header(bytes_of("00000000 0000000000001000 000000000000008e 0000000000100000")).is_ready());
}

TEST_CASE("MappedRam.bitmap_is_that_of_QEMU") {
  const Bytes bytes = bytes_of(bios_bitmap);
  REQUIRE(mapped_ram_bitmap_bytes(64) == bytes.size());
  const auto bitmap = decode_mapped_ram_bitmap(bytes, 64);
  REQUIRE(bitmap.has_value());
  CHECK(bitmap->find_set(0) == 17);
  CHECK(bitmap->count() == 47);
  CHECK(encode_mapped_ram_bitmap(*bitmap) == bytes);
}

TEST_CASE("MappedRam.bitmaps_are_whole_words") {
  CHECK(mapped_ram_bitmap_bytes(1) == 8);
  CHECK(mapped_ram_bitmap_bytes(64) == 8);
  CHECK(mapped_ram_bitmap_bytes(65) == 16);
  CHECK(encode_mapped_ram_bitmap(Bitmap(65)).size() == 16);
}

TEST_CASE("MappedRam.refuses_bits_behind_the_blocks_end") {
  CHECK(decode_mapped_ram_bitmap(bytes_of("1f00000000000000"), 5).has_value());
  const auto bitmap = decode_mapped_ram_bitmap(bytes_of("3f00000000000000"), 5);
  REQUIRE_FALSE(bitmap.has_value());
  CHECK(bitmap.error().text() == "the bitmap has pages behind the block's end (it has 5)");
}

TEST_CASE("MappedRam.a_section_holds_no_records") {
  CHECK(decode_mapped_ram_body(bytes_of("0000000000000010")).is_ready());
  CHECK(decode_mapped_ram_body(bytes_of("00000000")).needs_more());
  for (const char* word : {"0000000000001008", "0000000000000002", "0000000000000200", "0000000000001010"}) {
    const auto body = decode_mapped_ram_body(bytes_of(word));
    REQUIRE(body.failed());
    CHECK(body.error().text().starts_with("Unexpected RAM flags: "));
  }
}

TEST_CASE("MappedRam.both_sides_must_have_the_capability") {
  Configuration received;
  received.machine_name = "pc";
  ConfigurationExpectations local;
  local.mapped_ram = true;
  CHECK(check_configuration(received, local).error().text() ==
        "configuration: Capability mapped-ram is on, but received capability is off");
  received.capabilities = {std::string(capability_mapped_ram)};
  CHECK(check_configuration(received, local).has_value());
  local.mapped_ram = false;
  CHECK(check_configuration(received, local).error().text() ==
        "configuration: Capability mapped-ram is off, but received capability is on");
}
