// SPDX-License-Identifier: Apache-2.0
#include "ram/page_codec.hpp"
#include "tests/unit/catch.hpp"

#include <algorithm>
#include <cstring>
#include <random>

using namespace migrationd;
using namespace migrationd::ram;
using stream::MultifdMethod;
using stream::page_bytes;

namespace {

struct Pages {
  Bytes bytes;
  std::vector<const std::byte*> each;

  // `noise` of 256 bytes in a page cannot be compressed.
  Pages(std::size_t count, unsigned seed, std::size_t noise) : bytes(count * page_bytes) {
    std::mt19937 random(seed);
    for (std::size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<std::byte>(i % 256 < noise ? random() : i / 64);
    for (std::size_t page = 0; page < count; ++page) each.push_back(bytes.data() + page * page_bytes);
  }
};

Bytes encoded(PageEncoder& encoder, const Pages& pages) {
  auto payload = encoder.encode(pages.each);
  REQUIRE(payload.has_value());
  CHECK(payload->size() <= stream::multifd_payload_max);
  return {payload->begin(), payload->end()};
}

}  // namespace

TEST_CASE("PageCodec.gives_back_what_went_in_packet_after_packet") {
  const auto [method, level] = GENERATE(std::pair{MultifdMethod::zlib, 0}, std::pair{MultifdMethod::zlib, 1},
                                        std::pair{MultifdMethod::zlib, 9}, std::pair{MultifdMethod::zstd, 0},
                                        std::pair{MultifdMethod::zstd, 1}, std::pair{MultifdMethod::zstd, 20});
  auto encoder = PageEncoder::make(method, level);
  auto decoder = PageDecoder::make(method);
  REQUIRE(encoder.has_value());
  REQUIRE(decoder.has_value());
  unsigned seed = 0;
  for (const std::size_t count : {1, 128, 5, 96}) {
    for (const std::size_t noise : {20, 256}) {
      const Pages pages(count, ++seed, noise);
      const Bytes payload = encoded(**encoder, pages);
      Bytes out(pages.bytes.size());
      const auto decoded = (*decoder)->decode(payload, out);
      if (!decoded) FAIL(decoded.error().text());
      CHECK(out == pages.bytes);
    }
  }
}

TEST_CASE("PageCodec.payloads_begin_and_end_as_qemus_do") {
  auto zlib = PageEncoder::make(MultifdMethod::zlib, 1);
  const Bytes first = encoded(**zlib, Pages(96, 1, 10));
  const Bytes second = encoded(**zlib, Pages(96, 2, 10));
  CHECK(load_be<std::uint16_t>(first.data()) == 0x7801);
  CHECK(load_be<std::uint16_t>(second.data()) != 0x7801);
  CHECK(load_be<std::uint32_t>(first.data() + first.size() - 4) == 0x0000ffff);
  CHECK(load_be<std::uint32_t>(second.data() + second.size() - 4) == 0x0000ffff);
  auto zstd = PageEncoder::make(MultifdMethod::zstd, 1);
  const Bytes frame = encoded(**zstd, Pages(96, 1, 10));
  CHECK(load_be<std::uint32_t>(frame.data()) == 0x28b52ffd);
  CHECK(load_be<std::uint16_t>(frame.data() + 4) == 0x0048);  // no content size, no checksum, a window of 512 KiB
}

TEST_CASE("PageCodec.refuses_payloads_that_are_not_exactly_the_pages") {
  const auto method = GENERATE(MultifdMethod::zlib, MultifdMethod::zstd);
  const Pages pages(8, 1, 30);
  auto encoder = PageEncoder::make(method, 1);
  const Bytes payload = encoded(**encoder, pages);
  const auto decode = [method = method](ByteView bytes, std::size_t page_count) {
    auto decoder = PageDecoder::make(method);
    Bytes out(page_count * page_bytes);
    return (*decoder)->decode(bytes, out);
  };
  CHECK(bool(decode(payload, 8)));
  CHECK_FALSE(bool(decode(payload, 7)));
  CHECK_FALSE(bool(decode(payload, 9)));
  CHECK_FALSE(bool(decode(ByteView(payload).first(payload.size() / 2), 8)));
  CHECK_FALSE(bool(decode({}, 8)));
  Bytes longer = payload;
  longer.resize(longer.size() + 64, std::byte{0x55});
  CHECK_FALSE(bool(decode(longer, 8)));
  std::size_t refused = 0;
  for (std::size_t at = 0; at < payload.size(); at += payload.size() / 40) {
    Bytes bad = payload;
    bad[at] ^= std::byte{0xff};
    refused += decode(bad, 8) ? 0 : 1;
  }
  CHECK(refused > 0);
}
