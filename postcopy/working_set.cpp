// SPDX-License-Identifier: Apache-2.0
#include "postcopy/working_set.hpp"

#include "base/bitmap.hpp"
#include "base/limits.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

namespace migrationd::postcopy {
namespace {

constexpr std::uint64_t magic = 0x4d4457534554310a;  // "MDWSET1\n"
static_assert(limits::ram_blocks == 4096);

Error damaged(std::string_view what) { return wire_error(fmt::format("the working set is damaged: {}", what)); }

Result<void> read_head(ByteReader& reader, const FileState& file) {
  MD_TRY(const std::uint64_t begins, reader.u64());
  if (begins != magic) return wire_error("not a working set");
  FileState of;
  MD_TRY(of.size, reader.u64());
  MD_TRY(const std::uint64_t modified, reader.u64());
  of.modified_ns = static_cast<std::int64_t>(modified);
  if (of != file) return plan_error("the working set is of another file, or of this one before it changed");
  return {};
}

// The same blocks in the same order.
Result<void> read_blocks(ByteReader& reader, std::span<const BlockShape> blocks) {
  MD_TRY(const std::uint32_t count, reader.u32());
  if (count != blocks.size()) return plan_error("the working set is of a machine with other memory");
  for (const BlockShape& block : blocks) {
    MD_TRY(const std::string_view name, reader.str8());
    MD_TRY(const std::uint64_t pages, reader.u64());
    if (name != block.name || pages != block.pages) {
      return plan_error(fmt::format("the working set is of a machine with other memory: block '{}' of {} pages",
                                    printable(name), pages));
    }
  }
  return {};
}

Result<PageRange> read_run(ByteReader& reader, std::span<const BlockShape> blocks) {
  MD_TRY(const std::uint32_t block, reader.u32());
  MD_TRY(const std::uint32_t count, reader.u32());
  MD_TRY(const std::uint64_t first, reader.u64());
  if (block >= blocks.size()) return damaged(fmt::format("no block {}", block));
  const std::uint64_t pages = blocks[block].pages;
  if (count == 0 || first >= pages || count > pages - first) {
    return damaged(fmt::format("pages {}+{} of block '{}' of {}", first, count, printable(blocks[block].name), pages));
  }
  return PageRange{block, {first, count}};
}

}  // namespace

Bytes encode_working_set(const FileState& file, std::span<const BlockShape> blocks, std::span<const PageRange> order) {
  ByteWriter out;
  out.u64(magic).u64(file.size).u64(static_cast<std::uint64_t>(file.modified_ns));
  out.u32(static_cast<std::uint32_t>(blocks.size()));
  for (const BlockShape& block : blocks) out.str8(block.name).u64(block.pages);
  const std::size_t at = out.size();
  out.u32(0);
  std::uint32_t runs = 0;
  for (const PageRange& range : order) {
    // A run's length has 32 bits.
    for (ram::PageRun rest = range.run; rest.count > 0 && runs < most_working_set_runs; ++runs) {
      const std::uint64_t count = std::min<std::uint64_t>(rest.count, UINT32_MAX);
      out.u32(static_cast<std::uint32_t>(range.block)).u32(static_cast<std::uint32_t>(count)).u64(rest.first);
      rest = {rest.first + count, rest.count - count};
    }
  }
  out.patch_u32(at, runs);
  return std::move(out).take();
}

Result<std::vector<PageRange>> decode_working_set(ByteView bytes, const FileState& file,
                                                  std::span<const BlockShape> blocks) {
  if (bytes.size() > most_working_set_bytes) return damaged("it is too long");
  ByteReader reader(bytes);
  MD_CHECK(read_head(reader, file));
  MD_CHECK(read_blocks(reader, blocks));
  MD_TRY(const std::uint32_t runs, reader.u32());
  if (runs > most_working_set_runs) return damaged(fmt::format("{} runs", runs));
  if (reader.remaining() != std::size_t{runs} * 16) return damaged("its length is not what it says");
  std::vector<PageRange> order;
  order.reserve(runs);
  for (std::uint32_t run = 0; run < runs; ++run) {
    MD_TRY(const PageRange range, read_run(reader, blocks));
    order.push_back(range);
  }
  return order;
}

std::vector<PageRange> join_working_sets(std::span<const BlockShape> blocks, std::span<const PageRange> first,
                                         std::span<const PageRange> then) {
  std::vector<Bitmap> met;
  for (const BlockShape& block : blocks) met.emplace_back(block.pages);
  std::vector<PageRange> out;
  const auto add = [&](const PageRange& range) {
    const std::uint64_t end = range.run.first + range.run.count;
    Bitmap& seen = met[range.block];
    for (std::uint64_t page = seen.find_clear(range.run.first, end); page < end;) {
      const std::uint64_t stop = seen.find_set(page, end);
      seen.set_range(page, stop - page);
      if (!out.empty() && out.back().block == range.block && out.back().run.first + out.back().run.count == page) {
        out.back().run.count += stop - page;
      } else {
        out.push_back({range.block, {page, stop - page}});
      }
      page = seen.find_clear(stop, end);
    }
  };
  for (const PageRange& range : first) add(range);
  for (const PageRange& range : then) add(range);
  return out;
}

}  // namespace migrationd::postcopy
