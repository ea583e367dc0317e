// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/ram_record.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace migrationd::stream {

namespace {

constexpr RamRecord need_more(std::size_t total) noexcept {
  RamRecord record;
  record.size = total;
  return record;
}

constexpr RamRecord malformed() noexcept {
  RamRecord record;
  record.kind = RamKind::malformed;
  return record;
}

// The kind that these flags name, CONTINUE left aside; malformed for anything that is not legal.
RamKind kind_of(std::uint64_t flags) noexcept {
  const bool same_block = (flags & ram_flag::same_block) != 0;
  switch (flags & ~ram_flag::same_block) {
    case ram_flag::zero:
      return RamKind::zero;
    case ram_flag::page:
      return RamKind::page;
    case ram_flag::xbzrle:
      return RamKind::xbzrle;
    case ram_flag::compressed:
      return RamKind::compressed;
    case ram_flag::mem_size:
      return same_block ? RamKind::malformed : RamKind::mem_size;
    case ram_flag::eos:
      return same_block ? RamKind::malformed : RamKind::eos;
    case ram_flag::multifd_flush:
      return same_block ? RamKind::malformed : RamKind::multifd_flush;
    default:
      return RamKind::malformed;
  }
}

// Reads what stands between the name and the payload. `record.size` is the position; it moves on.
bool finish_page_header(ByteView available, RamRecord& record) noexcept {
  const std::byte* at = available.data() + record.size;
  switch (record.kind) {
    case RamKind::zero:
      record.size += 1;
      return at[0] == std::byte{0};
    case RamKind::page:
      record.payload_length = page_bytes;
      return true;
    case RamKind::xbzrle:
      record.payload_length = load_be<std::uint16_t>(at + 1);
      record.size += 3;
      return at[0] == std::byte{xbzrle_encoding} && record.payload_length >= 1 && record.payload_length <= xbzrle_max;
    case RamKind::compressed: {
      const auto length = load_be<std::uint32_t>(at);
      if (length == 0 || length > compressed_max) return false;
      record.payload_length = static_cast<std::uint16_t>(length);
      record.size += 4;
      return true;
    }
    case RamKind::need_more:
    case RamKind::malformed:
    case RamKind::mem_size:
    case RamKind::eos:
    case RamKind::multifd_flush:
      break;
  }
  return false;
}

constexpr std::size_t bytes_behind_name(RamKind kind) noexcept {
  switch (kind) {
    case RamKind::zero:
      return 1;
    case RamKind::xbzrle:
      return 3;
    case RamKind::compressed:
      return 4;
    case RamKind::page:
    case RamKind::need_more:
    case RamKind::malformed:
    case RamKind::mem_size:
    case RamKind::eos:
    case RamKind::multifd_flush:
      break;
  }
  return 0;
}

std::string explain_flags(std::uint64_t flags) {
  if ((flags & ram_flag::hook) != 0) return "an RDMA hook record, which only an RDMA transport carries";
  if ((flags & 1) != 0) return fmt::format("the obsolete flag 0x001 (flags {:#05x})", flags);
  return fmt::format("unknown combination of flags {:#05x}", flags);
}

std::size_t put_word_and_name(std::byte* out, std::uint64_t offset, std::uint64_t flags,
                              std::string_view name) noexcept {
  if (name.empty()) {
    store_be(out, offset | flags | ram_flag::same_block);
    return ram_word_bytes;
  }
  store_be(out, offset | flags);
  const std::size_t length = std::min<std::size_t>(name.size(), 255);
  out[ram_word_bytes] = static_cast<std::byte>(length);
  std::memcpy(out + ram_word_bytes + 1, name.data(), length);
  return ram_word_bytes + 1 + length;
}

}  // namespace

RamRecord detail::decode_ram_header_slow(ByteView available, bool block_known) noexcept {
  if (available.size() < ram_word_bytes) return need_more(ram_word_bytes);
  const auto word = load_be<std::uint64_t>(available.data());
  const std::uint64_t flags = word & ram_flag::mask;
  RamRecord record;
  record.kind = kind_of(flags);
  record.offset = word & ~ram_flag::mask;
  record.size = ram_word_bytes;
  switch (record.kind) {
    case RamKind::malformed:
    case RamKind::mem_size:
      return record;
    case RamKind::eos:
    case RamKind::multifd_flush:
      return record.offset == 0 ? record : malformed();
    case RamKind::need_more:
    case RamKind::zero:
    case RamKind::page:
    case RamKind::xbzrle:
    case RamKind::compressed:
      break;
  }
  if ((flags & ram_flag::same_block) != 0) {
    if (!block_known) return malformed();
  } else {
    if (available.size() < record.size + 1) return need_more(record.size + 1);
    const auto length = static_cast<std::size_t>(available[record.size]);
    if (length == 0) return malformed();
    if (available.size() < record.size + 1 + length) return need_more(record.size + 1 + length);
    record.named = true;
    record.name = as_text(available.subspan(record.size + 1, length));
    record.size += 1 + length;
  }
  const std::size_t more = bytes_behind_name(record.kind);
  if (available.size() < record.size + more) return need_more(record.size + more);
  return finish_page_header(available, record) ? record : malformed();
}

Error ram_record_error(ByteView available, bool block_known) {
  if (available.size() < ram_word_bytes) return wire_error("RAM record: ends too early");
  const auto word = load_be<std::uint64_t>(available.data());
  const std::uint64_t flags = word & ram_flag::mask;
  const std::uint64_t offset = word & ~ram_flag::mask;
  const RamKind kind = kind_of(flags);
  const auto refused = [&](std::string_view what) {
    return wire_error(fmt::format("RAM record {:#x}: {}", word, what));
  };
  if (kind == RamKind::malformed) return refused(explain_flags(flags));
  if (kind == RamKind::eos || kind == RamKind::multifd_flush)
    return refused(fmt::format("a mark with offset {:#x}", offset));
  std::size_t at = ram_word_bytes;
  if ((flags & ram_flag::same_block) != 0) {
    if (!block_known) return refused("continues a block, but none was named before");
  } else if (available.size() > at) {
    const auto length = static_cast<std::size_t>(available[at]);
    if (length == 0) return refused("the block name is empty");
    at += 1 + length;
  }
  if (kind == RamKind::zero && available.size() > at) {
    return refused(fmt::format("zero page with fill byte {:#04x}", static_cast<unsigned>(available[at])));
  }
  if (kind == RamKind::xbzrle && available.size() >= at + 3) {
    return refused(fmt::format("delta page with encoding {:#04x} and {} bytes (0x01 and 1 to {} are known)",
                               static_cast<unsigned>(available[at]), load_be<std::uint16_t>(available.data() + at + 1),
                               xbzrle_max));
  }
  if (kind == RamKind::compressed && available.size() >= at + 4) {
    return refused(fmt::format("compressed page of {} bytes, 1 to {} are taken",
                               load_be<std::uint32_t>(available.data() + at), compressed_max));
  }
  return refused("malformed");
}

std::size_t encode_page_header(std::byte* out, std::uint64_t offset, std::string_view name) noexcept {
  return put_word_and_name(out, offset, ram_flag::page, name);
}

std::size_t encode_zero_record(std::byte* out, std::uint64_t offset, std::string_view name) noexcept {
  const std::size_t at = put_word_and_name(out, offset, ram_flag::zero, name);
  out[at] = std::byte{0};
  return at + 1;
}

std::size_t encode_xbzrle_header(std::byte* out, std::uint64_t offset, std::string_view name,
                                 std::size_t length) noexcept {
  const std::size_t at = put_word_and_name(out, offset, ram_flag::xbzrle, name);
  out[at] = std::byte{xbzrle_encoding};
  store_be(out + at + 1, static_cast<std::uint16_t>(length));
  return at + 3;
}

std::size_t encode_compressed_header(std::byte* out, std::uint64_t offset, std::string_view name,
                                     std::size_t length) noexcept {
  const std::size_t at = put_word_and_name(out, offset, ram_flag::compressed, name);
  store_be(out + at, static_cast<std::uint32_t>(length));
  return at + 4;
}

std::size_t encode_eos(std::byte* out) noexcept {
  store_be(out, ram_flag::eos);
  return ram_word_bytes;
}

std::size_t encode_multifd_flush(std::byte* out) noexcept {
  store_be(out, ram_flag::multifd_flush);
  return ram_word_bytes;
}

std::size_t encode_rdma_hook(std::byte* out) noexcept {
  store_be(out, ram_flag::hook);
  return ram_word_bytes;
}

}  // namespace migrationd::stream
