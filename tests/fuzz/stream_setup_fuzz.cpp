// SPDX-License-Identifier: Apache-2.0
// Block lists: one byte of options, then the MEM_SIZE record. A list taken whole is encoded again.
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"

#include <algorithm>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ByteView all = std::as_bytes(std::span(data, size));
  if (all.size() < 1 + ram_word_bytes) return 0;
  const ByteView list = all.subspan(1);
  const RamRecord head = decode_ram_record(list, false);
  if (head.kind != RamKind::mem_size) return 0;
  RamSetupDecoder decoder(head.offset, {(data[0] & 1) != 0, (data[0] & 2) != 0});
  std::vector<RamSetupBlock> blocks;
  std::size_t at = head.size;
  while (!decoder.done()) {
    auto block = decoder.next(list.subspan(at));
    if (block.needs_more() && block.needed() <= list.size() - at) std::abort();
    if (!block.is_ready()) return 0;
    at += block.consumed();
    blocks.push_back(std::move(block).value());
  }
  ByteWriter out;
  encode_ram_setup(out, blocks);
  if (out.size() != at || !std::equal(out.view().begin(), out.view().end(), list.begin())) std::abort();
  return 0;
}
