// SPDX-License-Identifier: Apache-2.0
#include "ram/page_codec.hpp"

#include <fmt/format.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdlib>
#include <cstring>

namespace migrationd::ram {
namespace {

using stream::MultifdMethod;
using stream::page_bytes;

// So many pages are copied out at a time: the copy is still in the first-level cache when it is compressed.
constexpr std::size_t copied_pages = 4;

// A frame's window is a decoder's memory. Level 20, the highest that can be set, asks for 32 MiB.
constexpr int zstd_window_log_max = 25;

Error too_large() {
  return Error(ErrorKind::limit, "a packet of pages became larger when compressed than any receiver takes");
}

Error wrong_size(std::size_t got, std::size_t expected) {
  return wire_error(fmt::format("packet size received {} size expected {}", got, expected));
}

// The pages in copies of some at a time: use(bytes, is_last).
template <class Use>
Result<void> for_copied(std::span<const std::byte* const> pages, Use use) {
  std::array<std::byte, copied_pages * page_bytes> copy;
  while (!pages.empty()) {
    const std::size_t count = std::min(pages.size(), copied_pages);
    for (std::size_t i = 0; i < count; ++i) std::memcpy(copy.data() + i * page_bytes, pages[i], page_bytes);
    pages = pages.subspan(count);
    MD_CHECK(use(std::span(copy.data(), count * page_bytes), pages.empty()));
  }
  return {};
}

class Room {
 public:
  std::byte* data() const noexcept { return bytes_.get(); }
  ByteView first(std::size_t count) const noexcept { return {bytes_.get(), count}; }

 private:
  // Not a vector: what is not used is not touched.
  std::unique_ptr<std::byte[]> bytes_{new std::byte[stream::multifd_payload_max]};
};

// --- zlib ---------------------------------------------------------------------------------------------------------

class ZlibEncoder final : public PageEncoder {
 public:
  explicit ZlibEncoder(int level) : begun_(deflateInit(&zlib_, level) == Z_OK) {}
  ZlibEncoder(const ZlibEncoder&) = delete;
  ZlibEncoder& operator=(const ZlibEncoder&) = delete;
  ~ZlibEncoder() override { deflateEnd(&zlib_); }
  bool begun() const noexcept { return begun_; }

  Result<ByteView> encode(std::span<const std::byte* const> pages) override {
    zlib_.next_out = reinterpret_cast<Bytef*>(out_.data());
    zlib_.avail_out = stream::multifd_payload_max;
    MD_CHECK(for_copied(pages, [this](std::span<std::byte> some, bool last) -> Result<void> {
      zlib_.next_in = reinterpret_cast<Bytef*>(some.data());
      zlib_.avail_in = static_cast<uInt>(some.size());
      const int outcome = deflate(&zlib_, last ? Z_SYNC_FLUSH : Z_NO_FLUSH);
      if (outcome != Z_OK || zlib_.avail_in != 0 || zlib_.avail_out == 0) return too_large();
      return {};
    }));
    return out_.first(stream::multifd_payload_max - zlib_.avail_out);
  }

 private:
  z_stream zlib_ = {};
  bool begun_;
  Room out_;
};

class ZlibDecoder final : public PageDecoder {
 public:
  ZlibDecoder() : begun_(inflateInit(&zlib_) == Z_OK) {}
  ZlibDecoder(const ZlibDecoder&) = delete;
  ZlibDecoder& operator=(const ZlibDecoder&) = delete;
  ~ZlibDecoder() override { inflateEnd(&zlib_); }
  bool begun() const noexcept { return begun_; }

  Result<void> decode(ByteView payload, std::span<std::byte> out) override {
    // zlib's interface is older than const; it does not write through next_in.
    zlib_.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(payload.data()));
    zlib_.avail_in = static_cast<uInt>(payload.size());
    zlib_.next_out = reinterpret_cast<Bytef*>(out.data());
    zlib_.avail_out = static_cast<uInt>(out.size());
    int outcome = inflate(&zlib_, Z_SYNC_FLUSH);
    // The last page may be out before the flush's own bytes were read; asking for one byte more makes zlib read them.
    std::byte surplus{};
    if (outcome == Z_OK && zlib_.avail_out == 0 && zlib_.avail_in != 0) {
      zlib_.next_out = reinterpret_cast<Bytef*>(&surplus);
      zlib_.avail_out = 1;
      outcome = inflate(&zlib_, Z_SYNC_FLUSH);
      if (zlib_.avail_out == 0) return wrong_size(out.size() + 1, out.size());
      zlib_.avail_out = 0;
    }
    if (outcome != Z_OK) return wire_error(fmt::format("inflate returned {} instead of Z_OK", outcome));
    if (zlib_.avail_out != 0) return wrong_size(out.size() - zlib_.avail_out, out.size());
    if (zlib_.avail_in != 0) return wire_error(fmt::format("{} bytes of the packet are left over", zlib_.avail_in));
    return {};
  }

 private:
  z_stream zlib_ = {};
  bool begun_;
};

// --- zstd ---------------------------------------------------------------------------------------------------------

struct FreeZstd {
  void operator()(ZSTD_CCtx* context) const noexcept { ZSTD_freeCCtx(context); }
  void operator()(ZSTD_DCtx* context) const noexcept { ZSTD_freeDCtx(context); }
};

class ZstdEncoder final : public PageEncoder {
 public:
  explicit ZstdEncoder(int level) : zstd_(ZSTD_createCCtx()) {
    if (zstd_) begun_ = ZSTD_isError(ZSTD_CCtx_setParameter(zstd_.get(), ZSTD_c_compressionLevel, level)) == 0;
  }
  bool begun() const noexcept { return begun_; }

  Result<ByteView> encode(std::span<const std::byte* const> pages) override {
    ZSTD_outBuffer out{out_.data(), stream::multifd_payload_max, 0};
    MD_CHECK(for_copied(pages, [&](std::span<std::byte> some, bool last) -> Result<void> {
      ZSTD_inBuffer in{some.data(), some.size(), 0};
      std::size_t left = 1;
      // "continue" is done when it has taken its input, "flush" when nothing is left inside.
      while (last ? left != 0 : in.pos < in.size) {
        left = ZSTD_compressStream2(zstd_.get(), &out, &in, last ? ZSTD_e_flush : ZSTD_e_continue);
        if (ZSTD_isError(left) != 0)
          return Error(ErrorKind::machine, fmt::format("compressStream returned {}", ZSTD_getErrorName(left)));
        if (left != 0 && out.pos == out.size) return too_large();
      }
      return {};
    }));
    return out_.first(out.pos);
  }

 private:
  std::unique_ptr<ZSTD_CCtx, FreeZstd> zstd_;
  bool begun_ = false;
  Room out_;
};

class ZstdDecoder final : public PageDecoder {
 public:
  ZstdDecoder() : zstd_(ZSTD_createDCtx()) {
    if (zstd_)
      begun_ = ZSTD_isError(ZSTD_DCtx_setParameter(zstd_.get(), ZSTD_d_windowLogMax, zstd_window_log_max)) == 0;
  }
  bool begun() const noexcept { return begun_; }

  Result<void> decode(ByteView payload, std::span<std::byte> out) override {
    ZSTD_inBuffer in{payload.data(), payload.size(), 0};
    ZSTD_outBuffer to{out.data(), out.size(), 0};
    while (in.pos < in.size) {
      const ZSTD_inBuffer in_before = in;
      const std::size_t out_before = to.pos;
      const std::size_t outcome = ZSTD_decompressStream(zstd_.get(), &to, &in);
      if (ZSTD_isError(outcome) != 0)
        return wire_error(fmt::format("decompressStream returned {}", ZSTD_getErrorName(outcome)));
      if (in.pos == in_before.pos && to.pos == out_before) return wrong_size(to.pos + 1, out.size());
    }
    if (to.pos != to.size) return wrong_size(to.pos, out.size());
    // More may be held back, for want of room.
    std::byte surplus{};
    to = {&surplus, 1, 0};
    const std::size_t outcome = ZSTD_decompressStream(zstd_.get(), &to, &in);
    if (ZSTD_isError(outcome) == 0 && to.pos != 0) return wrong_size(out.size() + 1, out.size());
    return {};
  }

 private:
  std::unique_ptr<ZSTD_DCtx, FreeZstd> zstd_;
  bool begun_ = false;
};

template <class Codec, class Base, class... Arguments>
Result<std::unique_ptr<Base>> begin(Arguments... arguments) {
  auto codec = std::make_unique<Codec>(arguments...);
  if (!codec->begun()) return Error(ErrorKind::machine, "the compression library could not be started");
  return std::unique_ptr<Base>(std::move(codec));
}

}  // namespace

Result<std::unique_ptr<PageEncoder>> PageEncoder::make(MultifdMethod method, int level) {
  assert(method != MultifdMethod::none);
  if (method == MultifdMethod::zlib) return begin<ZlibEncoder, PageEncoder>(level);
  return begin<ZstdEncoder, PageEncoder>(level);
}

Result<std::unique_ptr<PageDecoder>> PageDecoder::make(MultifdMethod method) {
  assert(method != MultifdMethod::none);
  if (method == MultifdMethod::zlib) return begin<ZlibDecoder, PageDecoder>();
  return begin<ZstdDecoder, PageDecoder>();
}

}  // namespace migrationd::ram
