// SPDX-License-Identifier: Apache-2.0
#include "ram/sink_stream.hpp"

#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "ram/zero_page.hpp"

#include <algorithm>
#include <array>
#include <vector>

namespace migrationd::ram {
namespace {

// One write of hole records: 4096 of them, 36 KiB, which stay in the first-level cache while they are made.
constexpr std::size_t zero_run_pages = 4096;

}  // namespace

SinkStream::SinkStream(RamMap& map, transports::BufferedWriter& writer, const StopSource& stop, SendCounters& counters,
                       Options options)
    : map_(map),
      writer_(writer),
      counters_(counters),
      options_(std::move(options)),
      pacer_(stop),
      zero_records_(new std::byte[zero_run_pages * stream::zero_record_bytes]) {}

std::string_view SinkStream::name_for(std::size_t block) noexcept {
  if (current_block_ == block) return {};
  current_block_ = block;
  return map_.at(block).name();
}

void SinkStream::account(std::size_t bytes) noexcept {
  counters_.transferred.add(bytes);
  pacer_.sent(bytes);
}

// What was paid for goes out before we sleep: the peer works meanwhile, and references end.
Result<void> SinkStream::pace() {
  return pacer_.pace([this] { return writer_.flush(); });
}

Result<void> SinkStream::send_zero_page(std::size_t block, std::uint64_t offset) {
  std::array<std::byte, stream::ram_record_header_max> record;
  const std::size_t size = stream::encode_zero_record(record.data(), offset, name_for(block));
  account(size);
  counters_.zero_pages.add(1);
  if (xbzrle_ != nullptr) xbzrle_->sent_zeros(block, offset / page_size, 1);
  return writer_.append({record.data(), size});
}

Result<void> SinkStream::send_page(std::size_t block, std::uint64_t offset) {
  const std::byte* const page = map_.at(block).engine() + offset;
  if (is_zero_page(page)) return send_zero_page(block, offset);
  return xbzrle_ == nullptr ? send_whole_page(block, offset, page) : send_changes(block, offset, page);
}

Result<void> SinkStream::send_changes(std::size_t block, std::uint64_t offset, const std::byte* page) {
  const auto choice = xbzrle_->choose(block, offset / page_size, page);
  switch (choice.form) {
    case XbzrleSender::Form::unchanged:
      return {};
    case XbzrleSender::Form::delta:
      return send_delta(block, offset, choice.bytes);
    case XbzrleSender::Form::copy:
      return send_whole_page(block, offset, choice.bytes.data());
    case XbzrleSender::Form::page:
      break;
  }
  return send_whole_page(block, offset, page);
}

Result<void> SinkStream::send_delta(std::size_t block, std::uint64_t offset, ByteView delta) {
  std::array<std::byte, stream::ram_record_header_max> header;
  const std::size_t size = stream::encode_xbzrle_header(header.data(), offset, name_for(block), delta.size());
  account(size + delta.size());
  MD_CHECK(writer_.append({header.data(), size}));
  return writer_.append(delta);
}

Result<void> SinkStream::send_whole_page(std::size_t block, std::uint64_t offset, const std::byte* page) {
  std::array<std::byte, stream::ram_record_header_max> header;
  const std::size_t size = stream::encode_page_header(header.data(), offset, name_for(block));
  account(size + page_size);
  counters_.normal_pages.add(1);
  MD_CHECK(writer_.append({header.data(), size}));
  return writer_.append_reference({page, page_size});
}

Result<void> SinkStream::send_pages(std::size_t block, PageRun run) {
  const std::byte* const memory = map_.at(block).engine();
  for (std::uint64_t page = run.first; page < run.first + run.count; ++page) {
    // No prefetcher of the CPU crosses a page: the zero check would wait for memory at each. A hint may point anywhere.
    __builtin_prefetch(memory + (page + zero_prefetch_pages) * page_size);
    MD_CHECK(send_page(block, page * page_size));
    MD_CHECK(pace());
  }
  return {};
}

Result<void> SinkStream::send_holes(std::size_t block, PageRun run) {
  // The first may have to name its block; the others go in bulk.
  MD_CHECK(send_zero_page(block, run.first * page_size));
  for (std::uint64_t done = 1; done < run.count;) {
    const std::size_t pages = std::min<std::uint64_t>(run.count - done, zero_run_pages);
    const std::size_t size = stream::encode_zero_run(zero_records_.get(), (run.first + done) * page_size, pages);
    account(size);
    counters_.zero_pages.add(pages);
    if (xbzrle_ != nullptr) xbzrle_->sent_zeros(block, run.first + done, pages);
    MD_CHECK(writer_.append({zero_records_.get(), size}));
    MD_CHECK(pace());
    done += pages;
  }
  return {};
}

Result<void> SinkStream::write_block_list() {
  std::vector<stream::RamSetupBlock> list;
  for (std::size_t i = 0; i < map_.size(); ++i) {
    stream::RamSetupBlock block;
    block.name = map_.at(i).name();
    block.used_length = map_.at(i).length();
    if (!options_.page_sizes.empty() && options_.page_sizes[i] != page_size) block.page_size = options_.page_sizes[i];
    if (options_.addresses) block.address = map_.at(i).guest_address().value_or(0);
    list.push_back(std::move(block));
  }
  ByteWriter out;
  stream::encode_ram_setup(out, list);
  return writer_.append(out.view());
}

Result<void> SinkStream::send(const PageBatch& batch) {
  if (batch.kind() == BatchKind::fresh_holes && options_.skip_holes) {
    counters_.skipped_pages.add(batch.pages());
    return {};
  }
  for (const PageRun& run : batch.runs())
    MD_CHECK(batch.kind() == BatchKind::data ? send_pages(batch.block(), run) : send_holes(batch.block(), run));
  return {};
}

Result<void> SinkStream::finish_pass() { return writer_.flush(); }

Result<void> SinkStream::end_body() {
  std::array<std::byte, stream::ram_word_bytes> record;
  const std::size_t size = stream::encode_eos(record.data());
  account(size);
  return writer_.append({record.data(), size});
}

Result<void> SinkStream::put_flush() {
  std::array<std::byte, stream::ram_word_bytes> record;
  const std::size_t size = stream::encode_multifd_flush(record.data());
  account(size);
  return writer_.append({record.data(), size});
}

}  // namespace migrationd::ram
