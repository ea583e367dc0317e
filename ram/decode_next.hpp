// SPDX-License-Identifier: Apache-2.0
//
// decode_next(): one element off a stream, by a decoder that is a function of the bytes seen so far
// (protocol/stream/decoded.hpp).
//
// The decoder is shown what is buffered, then more and more as it asks; what it took is consumed. It never sees more
// than the reader's capacity: who asks for more has been given a length that no real element has.
// Errors: the decoder's; ErrorKind::wire when the stream ends first or the element is too large. Thread: the reader's.
#pragma once

#include "base/result.hpp"
#include "transports/buffered.hpp"

#include <type_traits>
#include <utility>

namespace migrationd::ram {

template <class Decode>
auto decode_next(transports::BufferedReader& reader, Decode decode)
    -> Result<std::decay_t<decltype(decode(ByteView{}).value())>> {
  auto decoded = decode(reader.buffered());
  while (decoded.needs_more()) {
    if (decoded.needed() > reader.capacity()) return wire_error("an element is larger than any real one");
    MD_TRY(const ByteView available, reader.peek(decoded.needed()));
    decoded = decode(available);
  }
  if (decoded.failed()) return std::move(decoded).error();
  reader.consume(decoded.consumed());
  return std::move(decoded).value();
}

}  // namespace migrationd::ram
