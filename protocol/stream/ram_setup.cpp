// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/ram_setup.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

#include <bit>

namespace migrationd::stream {

namespace {

Error refused(std::string text) { return wire_error(fmt::format("block list: {}", text)); }

// The two cases in which a page size stands at `position`: see the header.
enum class PageSizeThere : std::uint8_t { no, yes, short_of_bytes };

PageSizeThere page_size_follows(ByteView available, CodecCursor& in, bool last_block) {
  if (!last_block) {
    if (!in.has(1)) return PageSizeThere::short_of_bytes;
    return available[in.position()] == std::byte{0} ? PageSizeThere::yes : PageSizeThere::no;
  }
  if (!in.has(8)) return PageSizeThere::short_of_bytes;
  const auto word = load_be<std::uint64_t>(available.data() + in.position());
  return (word & ram_flag::mask) == 0 ? PageSizeThere::yes : PageSizeThere::no;
}

}  // namespace

Result<void> RamSetupDecoder::check(const RamSetupBlock& block) const {
  const std::string name = printable(block.name);
  if (names_.size() >= limits::ram_blocks) return refused(fmt::format("more than {} blocks", limits::ram_blocks));
  if (block.name.empty()) return refused("a block has an empty name");
  if (names_.contains(block.name)) return refused(fmt::format("block '{}' is listed twice", name));
  if (block.used_length == 0 || block.used_length % page_bytes != 0) {
    return refused(
        fmt::format("block '{}': length {:#x} is not a positive multiple of {}", name, block.used_length, page_bytes));
  }
  if (block.used_length > limits::ram_block_bytes) {
    return refused(fmt::format("block '{}': length {:#x} is above the bound {:#x}", name, block.used_length,
                               limits::ram_block_bytes));
  }
  if (block.used_length > left_) {
    return refused(fmt::format("block '{}': length {:#x}, but the total leaves {:#x}", name, block.used_length, left_));
  }
  if (block.page_size && (!std::has_single_bit(*block.page_size) || *block.page_size <= page_bytes ||
                          block.used_length % *block.page_size != 0)) {
    return refused(fmt::format("block '{}': page size {:#x} does not suit length {:#x}", name, *block.page_size,
                               block.used_length));
  }
  return {};
}

Decoded<RamSetupBlock> RamSetupDecoder::next(ByteView available) {
  if (left_ > limits::ram_total_bytes) {
    return refused(fmt::format("total of {:#x} bytes is above the bound {:#x}", left_, limits::ram_total_bytes));
  }
  CodecCursor in(available);
  const auto more = [&in] { return Decoded<RamSetupBlock>::need_more(in.needed()); };
  RamSetupBlock block;
  std::string_view name;
  if (!in.str8(name)) return more();
  block.name = name;
  if (!in.u64(block.used_length)) return more();
  // Before the optional members: their place is only known when the lengths are right.
  if (auto checked = check(block); !checked) return std::move(checked).error();
  // The two never meet in practice; with an address behind it a page size could not be told from one.
  if (options_.postcopy_advised && !options_.addresses) {
    const auto there = page_size_follows(available, in, block.used_length == left_);
    std::uint64_t page_size = 0;
    if (there == PageSizeThere::short_of_bytes) return more();
    if (there == PageSizeThere::yes) {
      if (!in.u64(page_size)) return more();
      block.page_size = page_size;
      if (auto checked = check(block); !checked) return std::move(checked).error();
    }
  }
  if (options_.addresses) {
    std::uint64_t address = 0;
    if (!in.u64(address)) return more();
    block.address = address;
  }
  names_.insert(block.name);
  left_ -= block.used_length;
  return Decoded<RamSetupBlock>::ready(std::move(block), in.position());
}

void encode_mem_size(ByteWriter& out, std::uint64_t total) { out.u64(total | ram_flag::mem_size); }

void encode_ram_setup(ByteWriter& out, std::span<const RamSetupBlock> blocks) {
  std::uint64_t total = 0;
  for (const RamSetupBlock& block : blocks) total += block.used_length;
  encode_mem_size(out, total);
  for (const RamSetupBlock& block : blocks) {
    out.str8(block.name).u64(block.used_length);
    if (block.page_size) out.u64(*block.page_size);
    if (block.address) out.u64(*block.address);
  }
}

}  // namespace migrationd::stream
