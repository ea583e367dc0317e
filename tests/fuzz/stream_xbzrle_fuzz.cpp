// SPDX-License-Identifier: Apache-2.0
// A delta applied to a page of its own bytes; a delta that was taken is found again by encoding, as effect.
#include "protocol/stream/xbzrle.hpp"

#include <array>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::array<std::byte, page_bytes> before{};
  for (std::size_t i = 0; i < page_bytes && size > 0; ++i)
    before[i] = static_cast<std::byte>(data[i % size] + i / size);
  auto after = before;
  if (!xbzrle_decode(std::as_bytes(std::span(data, size)), after)) return 0;
  std::array<std::byte, page_bytes> delta{};
  const auto length = xbzrle_encode(before, after, delta);
  if (!length) return 0;
  auto again = before;
  if (!xbzrle_decode(ByteView(delta).first(*length), again) || again != after) std::abort();
  return 0;
}
