// SPDX-License-Identifier: Apache-2.0
// zlib pages; what inflates once must inflate again to the same page (the inflater keeps state between pages).
#include "protocol/stream/compressed_page.hpp"

#include <array>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static PageInflater inflater;
  const ByteView bytes = std::as_bytes(std::span(data, size));
  std::array<std::byte, page_bytes> page{};
  if (!inflater.inflate(bytes, page)) return 0;
  std::array<std::byte, page_bytes> again{};
  if (!inflater.inflate(bytes, again) || again != page) std::abort();
  return 0;
}
