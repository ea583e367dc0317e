// SPDX-License-Identifier: Apache-2.0
#include "ram/sink_mapped.hpp"

#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace migrationd::ram {
namespace {

// What one worker gets at once: a large write, or so many single pages.
constexpr std::uint64_t batch_pages = MappedWriter::write_pages;
constexpr std::size_t batch_runs = 256;

}  // namespace

SinkMapped::SinkMapped(RamMap& map, transports::BufferedWriter& writer, transports::SeekableChannel& stream,
                       const StopSource& stop, SendCounters& counters, Options options)
    : map_(map), writer_(writer), stream_(stream), counters_(counters), options_(options), pacer_(stop) {}

Result<std::unique_ptr<SinkMapped>> SinkMapped::make(RamMap& map, transports::BufferedWriter& writer,
                                                     transports::SeekableChannel& stream,
                                                     std::vector<std::unique_ptr<transports::PositionalFile>> pages,
                                                     StopSource& stop, ThreadRoster& roster, SendCounters& counters,
                                                     Options options) {
  std::unique_ptr<SinkMapped> sink(new SinkMapped(map, writer, stream, stop, counters, options));
  std::vector<std::unique_ptr<FileWorker>> workers;
  for (auto& file : pages) {
    MD_CHECK(check_page_alignment(*file));
    auto worker = std::make_unique<MappedWriter>(map, sink->area_, std::move(file), options.detect_zeros);
    sink->writers_.push_back(worker.get());
    workers.push_back(std::move(worker));
  }
  MD_TRY(sink->workers_, FileWorkers::start("mig/src/send", std::move(workers), stop, roster));
  return sink;
}

Result<void> SinkMapped::write_block_list() {
  ByteWriter total;
  stream::encode_mem_size(total, map_.total_bytes());
  MD_CHECK(writer_.append(total.view()));
  for (std::size_t index = 0; index < map_.size(); ++index) {
    const RamBlock& block = map_.at(index);
    ByteWriter entry;
    entry.str8(block.name()).u64(block.length());
    MD_CHECK(writer_.flush());
    const std::uint64_t entry_end = stream_.position() + entry.size() + stream::mapped_ram_header_bytes;
    MD_TRY(const MappedPlace place, place_mapped_block(entry_end, block.length()));
    stream::encode_mapped_ram_header(entry, header_of(place));
    MD_CHECK(writer_.append(entry.view()));
    MD_CHECK(writer_.flush());
    stream_.seek(place.pages_end);
    area_.add(place, block.pages());
  }
  return {};
}

void SinkMapped::count() noexcept {
  std::uint64_t bytes = 0;
  std::uint64_t normal = 0;
  std::uint64_t zero = 0;
  for (const MappedWriter* worker : writers_) {
    bytes += worker->bytes.get();
    normal += worker->normal_pages.get();
    zero += worker->zero_pages.get();
  }
  const auto take = [](Counter& to, std::uint64_t now, std::uint64_t& before) {
    to.add(now - before);
    before = now;
  };
  take(counters_.transferred, bytes, counted_bytes_);
  take(counters_.normal_pages, normal, counted_normal_);
  take(counters_.zero_pages, zero, counted_zero_);
}

// What is charged is what will be written: all that waits, until a worker has seen what of it is zero.
Result<void> SinkMapped::pace() {
  // In this order: a batch that ends between the two is counted twice for a moment, and never missed.
  const std::uint64_t waiting = workers_->pages_handed_over() - workers_->pages_taken();
  count();
  const std::uint64_t expected = counted_bytes_ + waiting * page_size;
  if (expected <= charged_) return {};
  pacer_.sent(expected - charged_);
  charged_ = expected;
  return pacer_.pace([]() -> Result<void> { return {}; });
}

Result<void> SinkMapped::hand_over() {
  if (batch_.empty()) return {};
  if (auto taken = workers_->hand_over(batch_); !taken) return workers_->explain(std::move(taken).error());
  return pace();
}

Result<void> SinkMapped::add(BatchKind kind, std::size_t block, PageRun run) {
  if (batch_.block() != block || batch_.kind() != kind) {
    MD_CHECK(hand_over());
    batch_.reset(block, kind);
  }
  while (run.count > 0) {
    const std::uint64_t now = std::min(run.count, batch_pages - batch_.pages());
    batch_.add({run.first, now});
    run = {run.first + now, run.count - now};
    if (batch_.pages() < batch_pages && batch_.runs().size() < batch_runs) continue;
    MD_CHECK(hand_over());
    batch_.reset(block, kind);
  }
  return {};
}

Result<void> SinkMapped::send(const PageBatch& batch) {
  for (const PageRun& run : batch.runs()) {
    if (batch.kind() == BatchKind::data) {
      MD_CHECK(add(BatchKind::data, batch.block(), run));
    } else if (options_.detect_zeros) {
      area_.note_zero(batch.block(), run);
      counters_.zero_pages.add(run.count);
    } else if (batch.kind() == BatchKind::fresh_holes && options_.file_is_empty) {
      area_.note_written(batch.block(), run);
      counters_.normal_pages.add(run.count);
    } else {
      MD_CHECK(add(BatchKind::holes, batch.block(), run));
    }
  }
  return {};
}

Result<void> SinkMapped::wait_for_workers() {
  MD_CHECK(hand_over());
  if (auto done = workers_->synchronise(); !done) return workers_->explain(std::move(done).error());
  return pace();
}

Result<void> SinkMapped::finish_pass() { return wait_for_workers(); }

Result<void> SinkMapped::end_memory() {
  for (std::size_t index = 0; index < area_.size(); ++index) {
    const Bytes bitmap = stream::encode_mapped_ram_bitmap(area_.in_file(index));
    auto written = stream_.write_at(area_.place(index).bitmap_offset, bitmap);
    if (!written) {
      return std::move(written).error().with(fmt::format("bitmap of block '{}'", printable(map_.at(index).name())));
    }
  }
  return {};
}

Result<void> SinkMapped::end_body() {
  MD_CHECK(hand_over());
  count();
  std::array<std::byte, stream::ram_word_bytes> record;
  const std::size_t size = stream::encode_eos(record.data());
  counters_.transferred.add(size);
  return writer_.append({record.data(), size});
}

}  // namespace migrationd::ram
