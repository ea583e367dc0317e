// SPDX-License-Identifier: Apache-2.0
// The end of a stream. The first byte says in what pieces the rest is fed. Whatever is found must give the same bytes
// when it is encoded again.
#include "protocol/stream/device_tail.hpp"

#include <algorithm>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

namespace {

void must_be_the_same(const DeviceTailContents& contents, ByteView fed) {
  ByteWriter out;
  for (const DeviceSection& section : contents.sections) encode_device_section(out, section);
  encode_eof(out);
  if (contents.description) encode_description(out, *contents.description);
  // A SWITCHOVER_START in front is not kept.
  if (fed.size() < out.size()) std::abort();
  if (!std::equal(out.view().begin(), out.view().end(), fed.last(out.size()).begin())) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const ByteView bytes = std::as_bytes(std::span(data, size)).subspan(1);
  const std::size_t piece = data[0] == 0 ? bytes.size() + 1 : std::size_t{data[0]} * data[0];
  DeviceTail tail(1);
  for (std::size_t at = 0; at < bytes.size(); at += piece) {
    if (!tail.feed(bytes.subspan(at, std::min(piece, bytes.size() - at)))) return 0;
  }
  const auto quiet = tail.quiet();
  if (!quiet) return 0;
  const auto closed = tail.closed();
  if (*quiet == TailProgress::complete && !closed) std::abort();
  if (closed) must_be_the_same(std::move(tail).take(), bytes);
  return 0;
}
