// SPDX-License-Identifier: Apache-2.0
//
// ByteReader under a program of reads that the input chooses: the first byte of each step is the operation, the
// rest of the input is what is read. Besides the sanitizers' view, position and remaining must always add up, and
// a refused read must consume nothing: decoders rely on both to name the offset of what is wrong.
#include "base/bytes.hpp"

#include <cstdlib>

using migrationd::ByteReader;

namespace {

bool step(ByteReader& in, std::uint8_t operation) {
  const auto length = static_cast<std::size_t>(operation >> 3);
  switch (operation & 7U) {
    case 0:
      return in.u8().has_value();
    case 1:
      return in.u16().has_value();
    case 2:
      return in.u32().has_value();
    case 3:
      return in.u64().has_value();
    case 4:
      return in.bytes(length).has_value();
    case 5:
      return in.skip(length).has_value();
    case 6:
      return in.str8().has_value();
    default: {
      std::byte out{};
      return in.peek(length, out) == (length < in.remaining());
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto program = std::min<std::size_t>(size, 16);
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  ByteReader in({bytes + program, size - program});
  for (std::size_t i = 0; i < program; ++i) {
    const auto before = in.position();
    const bool taken = step(in, data[i]);
    if (!taken && in.position() != before) std::abort();
    if (in.position() + in.remaining() != size - program) std::abort();
  }
  return 0;
}
