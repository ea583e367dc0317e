// SPDX-License-Identifier: Apache-2.0
// Libvirt's save image, and telling kinds of files apart.
#include "protocol/stream/save_image.hpp"
#include "protocol/stream/header.hpp"
#include "protocol/stream/image_kind.hpp"
#include "tests/unit/catch.hpp"
#include "tests/unit/protocol/stream_bytes.hpp"

#include <cstring>

using namespace migrationd;
using namespace migrationd::stream;
using migrationd::test::bytes_of;

namespace {

constexpr std::string_view xml = "<domain type='qemu'><name>tiny</name></domain>";

// What libvirt 9.0 wrote on x86 for a running domain, raw.
constexpr const char* real_header =
    "'LibvirtQemudSave' 02000000 3e050100 01000000 00000000 52040000"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000";
constexpr const char* swapped_header =
    "'LibvirtQemudSave' 00000002 0001053e 00000001 00000000 00000452"
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000";

ReadAt reader_of(const Bytes& file) {
  return [&file](std::uint64_t offset, std::span<std::byte> into) -> Result<std::size_t> {
    if (offset >= file.size()) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(into.size(), file.size() - offset);
    std::memcpy(into.data(), file.data() + offset, count);
    return count;
  };
}

Bytes stream_of(bool mapped) {
  ByteWriter out;
  encode_header(out);
  Configuration configuration;
  configuration.machine_name = "pc-i440fx-10.0";
  if (mapped) configuration.capabilities = {"mapped-ram"};
  encode_configuration(out, configuration);
  out.u8(mark::section_start);
  return std::move(out).take();
}

Bytes image_of(SaveImageFormat format, bool complete, const Bytes& stream, std::string_view cookie = {}) {
  const NewSaveImage image{xml, cookie, format, true};
  auto header = plan_save_image(image);
  REQUIRE(header.has_value());
  header->complete = complete;
  ByteWriter out;
  encode_save_image(out, *header, image);
  CHECK(out.size() == header->stream_offset());
  out.bytes(stream);
  return std::move(out).take();
}

Image kind_of(const Bytes& file, std::uint64_t start = 0) {
  auto image = recognise_image(reader_of(file), start);
  REQUIRE(image.has_value());
  return *image;
}

// The real header with one word replaced.
std::string refusal_with(std::size_t offset, std::uint32_t value) {
  Bytes bytes = bytes_of(real_header);
  std::memcpy(bytes.data() + offset, &value, sizeof value);
  const auto decoded = decode_save_image_header(bytes);
  REQUIRE(decoded.failed());
  return decoded.error().text();
}

}  // namespace

TEST_CASE("SaveImage.header_is_that_of_libvirt") {
  const Bytes bytes = bytes_of(real_header);
  REQUIRE(bytes.size() == save_image_header_bytes);
  const auto decoded = decode_save_image_header(bytes);
  REQUIRE(decoded.is_ready());
  SaveImageHeader expected;
  expected.data_length = 0x1053e;
  expected.was_running = true;
  expected.cookie_offset = 0x452;
  CHECK(decoded.value() == expected);
  CHECK(decoded.value().stream_offset() == 92 + 0x1053e);
  ByteWriter out;
  encode_save_image_header(out, decoded.value());
  CHECK(std::move(out).take() == bytes);
}

TEST_CASE("SaveImage.a_header_of_the_other_byte_order_is_read_and_written") {
  const Bytes bytes = bytes_of(swapped_header);
  const auto decoded = decode_save_image_header(bytes);
  REQUIRE(decoded.is_ready());
  CHECK(decoded.value().byte_swapped);
  CHECK(decoded.value().data_length == 0x1053e);
  CHECK(decoded.value().cookie_offset == 0x452);
  ByteWriter out;
  encode_save_image_header(out, decoded.value());
  CHECK(std::move(out).take() == bytes);
}

TEST_CASE("SaveImage.a_cut_header_asks_for_the_rest") {
  const Bytes bytes = bytes_of(real_header);
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    const auto decoded = decode_save_image_header(ByteView(bytes).first(size));
    REQUIRE(decoded.needs_more());
    CHECK(decoded.needed() == save_image_header_bytes);
  }
}

TEST_CASE("SaveImage.refuses_headers_it_does_not_understand") {
  CHECK(refusal_with(16, 3) == "save image: version 50331648 is not supported, only 1 and 2");
  CHECK(refusal_with(16, 0) == "save image: version 0 is not supported, only 1 and 2");
  CHECK(refusal_with(20, 0) == "save image: the header leaves no room for the domain's XML");
  CHECK(refusal_with(20, 0xffffffff) == "save image: 4294967295 bytes of XML, at most 16777216 are taken");
  CHECK(refusal_with(28, 7) == "save image: format 7 is not known, only 0 to 6");
  CHECK(refusal_with(32, 0x1053e) == "save image: the cookie at 66878 lies behind the data's end (66878 bytes)");
  CHECK(decode_save_image_header(bytes_of("'LibvirtQemudSafe'")).failed());
  CHECK(decode_save_image_header(bytes_of("'Q'")).failed());
}

TEST_CASE("SaveImage.version_1_is_raw_whatever_stands_in_the_format") {
  Bytes bytes = bytes_of(real_header);
  bytes[16] = std::byte{1};
  bytes[28] = std::byte{99};
  const auto decoded = decode_save_image_header(bytes);
  REQUIRE(decoded.is_ready());
  CHECK(decoded.value().format == SaveImageFormat::raw);
}

TEST_CASE("SaveImage.texts_come_back_as_they_were_written") {
  for (const std::string_view cookie : {"", "<cookie/>"}) {
    const Bytes file = image_of(SaveImageFormat::raw, true, stream_of(false), cookie);
    const auto header = decode_save_image_header(file);
    REQUIRE(header.is_ready());
    CHECK(header.value().was_running);
    auto texts = read_save_image_texts(reader_of(file), header.value());
    REQUIRE(texts.has_value());
    CHECK(texts->xml == xml);
    CHECK(texts->cookie == cookie);
  }
}

TEST_CASE("SaveImage.xml_without_an_end_or_cut_off_is_refused") {
  SaveImageHeader header;
  header.data_length = 4;
  CHECK(decode_save_image_texts(header, bytes_of("'<x/>'")).error().text() ==
        "save image: the domain's XML has no end");
  CHECK(decode_save_image_texts(header, bytes_of("'<x/'")).has_error());
  CHECK(decode_save_image_texts(header, bytes_of("'<x>'")).has_error());
  CHECK(decode_save_image_texts(header, bytes_of("00000000")).error().text() ==
        "save image: the domain's XML is missing");
  CHECK(decode_save_image_texts(header, bytes_of("'<x'")).error().text() == "save image: the domain's XML is cut off");
  CHECK(plan_save_image({"", {}}).has_error());
  CHECK(plan_save_image({std::string_view("<x\0/>", 5), {}}).has_error());
  CHECK(plan_save_image({std::string(save_image_data_max, 'x'), {}}).has_error());
}

TEST_CASE("ImageKind.tells_streams_and_images_apart") {
  CHECK(kind_of(stream_of(false)).kind == ImageKind::plain);
  CHECK(kind_of(stream_of(true)).kind == ImageKind::mapped_ram);
  CHECK(kind_of(stream_of(true)).configuration->machine_name == "pc-i440fx-10.0");
  const Image raw = kind_of(image_of(SaveImageFormat::raw, true, stream_of(false)));
  CHECK(raw.kind == ImageKind::libvirt_raw);
  CHECK(raw.stream_offset == 92 + xml.size() + 1 + save_image_padding);
  CHECK(raw.check_usable().has_value());
  const Image sparse = kind_of(image_of(SaveImageFormat::sparse, true, stream_of(true)));
  CHECK(sparse.kind == ImageKind::libvirt_sparse);
  CHECK(sparse.has_places());
  const Image packed = kind_of(image_of(SaveImageFormat::zstd, true, bytes_of("28b52ffd")));
  CHECK(packed.kind == ImageKind::libvirt_compressed);
  CHECK(packed.decompressor() == "zstd");
}

TEST_CASE("ImageKind.a_stream_may_begin_at_an_offset") {
  Bytes file(4096);
  const Bytes stream = stream_of(true);
  file.insert(file.end(), stream.begin(), stream.end());
  const Image image = kind_of(file, 4096);
  CHECK(image.kind == ImageKind::mapped_ram);
  CHECK(image.stream_offset == 4096);
}

TEST_CASE("ImageKind.what_was_not_written_to_its_end_is_incomplete") {
  const Bytes stream = stream_of(false);
  CHECK(kind_of({}).kind == ImageKind::incomplete);
  CHECK(kind_of(Bytes(100)).kind == ImageKind::incomplete);
  for (std::size_t size = 1; size + 1 < stream.size(); ++size) {
    INFO(size);
    CHECK(kind_of(Bytes(stream.begin(), stream.begin() + static_cast<std::ptrdiff_t>(size))).kind ==
          ImageKind::incomplete);
  }
  const Image part = kind_of(image_of(SaveImageFormat::raw, false, stream));
  CHECK(part.kind == ImageKind::incomplete);
  CHECK(part.libvirt.has_value());
  CHECK(part.check_usable().error().text() ==
        "the file is incomplete: libvirt's header says that the image is not whole");
  CHECK(kind_of(image_of(SaveImageFormat::raw, true, {})).kind == ImageKind::incomplete);
  CHECK(kind_of(image_of(SaveImageFormat::gzip, true, {})).kind == ImageKind::incomplete);
  CHECK(kind_of(image_of(SaveImageFormat::raw, true, Bytes(64))).kind == ImageKind::incomplete);
}

TEST_CASE("ImageKind.what_is_no_machine_is_unknown") {
  CHECK(kind_of(bytes_of("'hello, world'")).kind == ImageKind::unknown);
  CHECK(kind_of(image_of(SaveImageFormat::raw, true, bytes_of("'hello, world'"))).kind == ImageKind::unknown);
  // The header and the stream contradict each other.
  CHECK(kind_of(image_of(SaveImageFormat::raw, true, stream_of(true))).kind == ImageKind::unknown);
  CHECK(kind_of(image_of(SaveImageFormat::sparse, true, stream_of(false))).kind == ImageKind::unknown);
}
