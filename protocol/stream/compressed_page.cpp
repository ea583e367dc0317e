// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/compressed_page.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <cstdlib>

namespace migrationd::stream {

struct PageInflater::State {
  State() = default;
  State(const State&) = delete;
  State& operator=(const State&) = delete;
  ~State() { inflateEnd(&zlib); }
  z_stream zlib = {};
};

PageInflater::PageInflater() : state_(std::make_unique<State>()) {
  // Fails only without memory, or with another zlib than the one compiled against.
  if (inflateInit(&state_->zlib) != Z_OK) std::abort();
}

PageInflater::~PageInflater() = default;
PageInflater::PageInflater(PageInflater&&) noexcept = default;
PageInflater& PageInflater::operator=(PageInflater&&) noexcept = default;

Result<void> PageInflater::inflate(ByteView compressed, MutablePage page) {
  z_stream& zlib = state_->zlib;
  if (inflateReset(&zlib) != Z_OK) std::abort();
  // zlib's interface is older than const; it does not write through next_in.
  zlib.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(compressed.data()));
  zlib.avail_in = static_cast<uInt>(compressed.size());
  zlib.next_out = reinterpret_cast<Bytef*>(page.data());
  zlib.avail_out = page_bytes;
  const int outcome = ::inflate(&zlib, Z_FINISH);
  if (outcome == Z_STREAM_END && zlib.avail_out == 0 && zlib.avail_in == 0) return {};
  if (outcome == Z_STREAM_END) {
    return wire_error(fmt::format("compressed page: {} bytes come out and {} are left over (4096 and 0 are due)",
                                  page_bytes - zlib.avail_out, zlib.avail_in));
  }
  return wire_error(
      fmt::format("compressed page: zlib says {}", zlib.msg != nullptr ? zlib.msg : "the stream is cut or too long"));
}

Bytes deflate_page(PageView page, int level) {
  Bytes out(compressed_max);
  uLongf length = compressed_max;
  const int outcome = compress2(reinterpret_cast<Bytef*>(out.data()), &length,
                                reinterpret_cast<const Bytef*>(page.data()), page_bytes, level);
  if (outcome != Z_OK) std::abort();  // the buffer is zlib's own bound
  out.resize(length);
  return out;
}

}  // namespace migrationd::stream
