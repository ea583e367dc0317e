// SPDX-License-Identifier: Apache-2.0
// The cpr channel's list, cut into pieces by the input itself: each piece is a byte (low six bits: how many bytes of
// the list, high two: how many descriptors), then those bytes. What is taken is written again and must be taken again,
// the same; no descriptor may be left open.
#include "protocol/cpr/cpr_state.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

using namespace migrationd;

namespace {

UniqueFd some_descriptor() { return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

// The number that the next descriptor would have: the same before and after, if none was left open.
int next_number() { return some_descriptor().get(); }

void require(bool good) {
  if (!good) std::abort();
}

// Written and read again.
void round_trip(const std::vector<cpr::NamedDescriptor>& entries) {
  ByteWriter out;
  cpr::encode_header(out);
  std::vector<UniqueFd> descriptors;
  for (const auto& entry : entries) {
    require(bool(cpr::check_name(entry.name)));
    cpr::encode_entry(out, entry.name, entry.id);
    out.u8(0x20);
    descriptors.push_back(some_descriptor());
  }
  out.u8(0);
  cpr::CprStateDecoder decoder;
  require(bool(decoder.feed(out.view(), std::move(descriptors))));
  auto again = std::move(decoder).finish();
  require(again.has_value() && again->size() == entries.size());
  for (std::size_t i = 0; i < entries.size(); ++i) {
    require((*again)[i].name == entries[i].name && (*again)[i].id == entries[i].id);
  }
}

void feed_all(ByteView input) {
  cpr::CprStateDecoder decoder;
  while (!input.empty()) {
    const auto head = std::to_integer<unsigned>(input[0]);
    input = input.subspan(1);
    const ByteView piece = input.first(std::min<std::size_t>(head & 0x3f, input.size()));
    input = input.subspan(piece.size());
    std::vector<UniqueFd> descriptors;
    for (unsigned i = 0; i < head >> 6; ++i) descriptors.push_back(some_descriptor());
    if (!decoder.feed(piece, std::move(descriptors))) return;
  }
  if (auto entries = std::move(decoder).finish()) round_trip(*entries);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const int before = next_number();
  feed_all(std::as_bytes(std::span(data, size)));
  require(next_number() == before);
  return 0;
}
