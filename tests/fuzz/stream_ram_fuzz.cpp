// SPDX-License-Identifier: Apache-2.0
// Bodies of the RAM section: records one after the other, and what they carry. Every record is encoded again.
#include "protocol/stream/compressed_page.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/xbzrle.hpp"

#include <array>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

namespace {

void must(bool condition) {
  if (!condition) std::abort();
}

std::size_t encode_header(std::byte* out, const RamRecord& record) {
  switch (record.kind) {
    case RamKind::zero:
      return encode_zero_record(out, record.offset, record.name);
    case RamKind::page:
      return encode_page_header(out, record.offset, record.name);
    case RamKind::xbzrle:
      return encode_xbzrle_header(out, record.offset, record.name, record.payload_length);
    case RamKind::compressed:
      return encode_compressed_header(out, record.offset, record.name, record.payload_length);
    case RamKind::eos:
      return encode_eos(out);
    case RamKind::multifd_flush:
      return encode_multifd_flush(out);
    case RamKind::mem_size:
    case RamKind::need_more:
    case RamKind::malformed:
      break;
  }
  return 0;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static PageInflater inflater;
  std::array<std::byte, page_bytes> page{};
  ByteView rest = std::as_bytes(std::span(data, size));
  bool block_known = false;
  while (!rest.empty()) {
    const ZeroRun run = decode_zero_run(rest, 1000);
    const RamRecord record = decode_ram_record(rest, block_known);
    if (record.kind == RamKind::malformed) {
      must(!ram_record_error(rest, block_known).text().empty());
      return 0;
    }
    if (record.kind == RamKind::need_more) {
      must(record.size > rest.size());
      return 0;
    }
    must(record.size > 0 && record.size <= rest.size());
    if (block_known) must((run.pages > 0) == (record.kind == RamKind::zero && !record.named));
    std::array<std::byte, ram_record_header_max> header{};
    const std::size_t length = encode_header(header.data(), record);
    must(std::equal(header.begin(), header.begin() + static_cast<std::ptrdiff_t>(length), rest.begin()));
    if (record.kind == RamKind::xbzrle) (void)xbzrle_decode(record.payload, page);
    if (record.kind == RamKind::compressed) (void)inflater.inflate(record.payload, page);
    block_known = block_known || record.named;
    rest = rest.subspan(record.size);
  }
  return 0;
}
