// SPDX-License-Identifier: Apache-2.0
// Return-path messages and received bitmaps; what is taken is encoded again to the same bytes.
#include "protocol/stream/return_path.hpp"

#include <algorithm>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

namespace {

void must_equal(const ByteWriter& out, ByteView in, std::size_t consumed) {
  if (out.size() != consumed || !std::equal(out.view().begin(), out.view().end(), in.begin())) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ByteView rest = std::as_bytes(std::span(data, size));
  while (!rest.empty()) {
    auto message = decode_return_message(rest);
    if (message.needs_more() && message.needed() <= rest.size()) std::abort();
    if (!message.is_ready()) return 0;
    ByteWriter out;
    encode_return_message(out, message.value());
    must_equal(out, rest, message.consumed());
    rest = rest.subspan(message.consumed());
    if (!std::holds_alternative<reply::RecvBitmap>(message.value())) continue;
    const auto bitmap = decode_received_bitmap(rest, 100);
    if (!bitmap.is_ready()) return 0;
    ByteWriter blob;
    encode_received_bitmap(blob, bitmap.value());
    must_equal(blob, rest, bitmap.consumed());
    rest = rest.subspan(bitmap.consumed());
  }
  return 0;
}
