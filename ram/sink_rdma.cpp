// SPDX-License-Identifier: Apache-2.0
#include "ram/sink_rdma.hpp"

#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/ram_setup.hpp"
#include "ram/zero_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

namespace migrationd::ram {

using rdma::chunk_bytes;
using rdma::ControlType;

namespace {

// Chunks asked for in one message of a destination of our kind: a batch is 4 MiB, and what lies scattered has more.
constexpr std::size_t keys_at_once = 16;

}  // namespace

SinkRdma::SinkRdma(RamMap& map, transports::BufferedWriter& writer, RdmaConnections& connections,
                   const StopSource& stop, SendCounters& counters, Options options)
    : map_(map),
      writer_(writer),
      connections_(connections),
      counters_(counters),
      options_(std::move(options)),
      pacer_(stop),
      keys_(map, connections.main->link().domain()),
      writes_(connections) {}

Result<void> SinkRdma::account(std::uint64_t bytes) {
  counters_.transferred.add(bytes);
  pacer_.sent(bytes);
  return pacer_.pace([]() -> Result<void> { return {}; });
}

// --- the frame of a body ------------------------------------------------------------------------------------------

Result<void> SinkRdma::write_block_list() {
  std::vector<stream::RamSetupBlock> list;
  for (std::size_t i = 0; i < map_.size(); ++i) {
    stream::RamSetupBlock block;
    block.name = map_.at(i).name();
    block.used_length = map_.at(i).length();
    if (!options_.page_sizes.empty() && options_.page_sizes[i] != page_size) block.page_size = options_.page_sizes[i];
    list.push_back(std::move(block));
  }
  ByteWriter out;
  stream::encode_ram_setup(out, list);
  MD_CHECK(writer_.append(out.view()));
  MD_CHECK(open_body());
  auto exchanged = exchange_blocks();
  if (!exchanged) return std::move(exchanged).error().with("RDMA: the destination's blocks");
  MD_CHECK(writes_.finish_and_fence());
  MD_CHECK(connections_.main->send(ControlType::register_finished));
  body_open_ = false;
  body_done_ = true;
  return {};
}

Result<void> SinkRdma::open_body() {
  if (body_open_) return {};
  std::array<std::byte, stream::ram_word_bytes> record;
  const std::size_t size = stream::encode_rdma_hook(record.data());
  counters_.transferred.add(size);
  MD_CHECK(writer_.append({record.data(), size}));
  MD_CHECK(writer_.flush());
  body_open_ = true;
  return {};
}

Result<void> SinkRdma::exchange_blocks() {
  const bool pinned = connections_.pin_all;
  const auto meanwhile = [this, pinned]() -> Result<void> { return pinned ? pin_blocks() : Result<void>(); };
  MD_TRY(const rdma::ControlMessage answer, connections_.main->ask(ControlType::ram_blocks_request, 1, {}, meanwhile));
  return keys_.take_blocks(rdma::decode_remote_blocks(answer), pinned);
}

// While the destination does the same.
Result<void> SinkRdma::pin_blocks() {
  if (options_.memory_may_go) return {};
  for (std::size_t index = 0; index < map_.size(); ++index) MD_CHECK(keys_.pin(index));
  return {};
}

Result<void> SinkRdma::end_body() {
  if (!body_done_) {
    MD_CHECK(open_body());
    MD_CHECK(writes_.finish_and_fence());
    MD_CHECK(connections_.main->send(ControlType::register_finished));
  }
  body_open_ = false;
  body_done_ = false;
  std::array<std::byte, stream::ram_word_bytes> record;
  const std::size_t size = stream::encode_eos(record.data());
  counters_.transferred.add(size);
  return writer_.append({record.data(), size});
}

Result<void> SinkRdma::finish_pass() {
  MD_CHECK(writes_.finish());
  if (options_.memory_may_go) keys_.forget_local();
  return {};
}

// --- pages ----------------------------------------------------------------------------------------------------------

void SinkRdma::cut(const PageBatch& batch) {
  pieces_.clear();
  for (const PageRun& run : batch.runs()) {
    std::uint64_t offset = run.first * page_size;
    const std::uint64_t end = offset + run.count * page_size;
    while (offset < end) {
      const std::uint64_t chunk = rdma::chunk_of(offset);
      const std::uint64_t stop = std::min(end, (chunk + 1) * chunk_bytes);
      pieces_.push_back({chunk, offset, stop - offset, batch.kind() != BatchKind::data});
      offset = stop;
    }
  }
}

bool SinkRdma::is_zero(std::size_t block, const Piece& piece) const noexcept {
  const std::byte* const memory = map_.at(block).engine() + piece.offset;
  for (std::uint64_t at = 0; at < piece.length; at += page_size) {
    __builtin_prefetch(memory + at + zero_prefetch_pages * page_size);
    if (!is_zero_page(memory + at)) return false;
  }
  return true;
}

Result<void> SinkRdma::send(const PageBatch& batch) {
  if (batch.kind() == BatchKind::fresh_holes && options_.skip_holes) {
    counters_.skipped_pages.add(batch.pages());
    return {};
  }
  MD_CHECK(open_body());
  cut(batch);
  const std::size_t block = batch.block();
  wanted_.clear();
  Piece zeros;  // not told yet
  for (Piece& piece : pieces_) {
    if (keys_.has_remote(block, piece.chunk)) continue;
    if (piece.zero || is_zero(block, piece)) {
      MD_CHECK(add_zeros(block, zeros, piece));
      piece.length = 0;
    } else if (wanted_.empty() || wanted_.back() != piece.chunk) {
      wanted_.push_back(piece.chunk);
    }
  }
  MD_CHECK(send_zeros(block, zeros));
  MD_CHECK(register_chunks(block));
  for (const Piece& piece : pieces_) {
    if (piece.length != 0) MD_CHECK(write_piece(block, piece));
  }
  return {};
}

Result<void> SinkRdma::add_zeros(std::size_t block, Piece& zeros, const Piece& piece) {
  if (connections_.large_requests && zeros.length != 0 && zeros.offset + zeros.length == piece.offset) {
    zeros.length += piece.length;
    return {};
  }
  MD_CHECK(send_zeros(block, zeros));
  zeros = piece;
  return {};
}

Result<void> SinkRdma::send_zeros(std::size_t block, const Piece& piece) {
  if (piece.length == 0) return {};
  ByteWriter out;
  encode(out, rdma::Compress{0, static_cast<std::uint32_t>(block), keys_.where(block, piece.offset), piece.length});
  MD_CHECK(connections_.main->send(ControlType::compress, out.view()));
  counters_.zero_pages.add(piece.length / page_size);
  return account(rdma::control_header_bytes + rdma::compress_bytes);
}

Result<void> SinkRdma::register_chunks(std::size_t block) {
  for (std::span<const std::uint64_t> left(wanted_); !left.empty();) {
    const std::size_t now = std::min(left.size(), connections_.large_requests ? keys_at_once : 1);
    auto asked = ask_for_keys(block, left.first(now));
    if (!asked) {
      return std::move(asked).error().with(
          fmt::format("RDMA: register block '{}' at the destination", printable(map_.at(block).name())));
    }
    left = left.subspan(now);
  }
  return {};
}

// Our own side of the chunks is registered while the destination does its own.
Result<void> SinkRdma::ask_for_keys(std::size_t block, std::span<const std::uint64_t> chunks) {
  ByteWriter out;
  for (const std::uint64_t chunk : chunks) encode(out, keys_.request_for(block, chunk));
  const auto meanwhile = [&]() -> Result<void> {
    for (const std::uint64_t chunk : chunks) {
      MD_TRY([[maybe_unused]] const std::uint32_t key, keys_.local(block, chunk));
    }
    return {};
  };
  MD_TRY(const rdma::ControlMessage answer,
         connections_.main->ask(ControlType::register_request, static_cast<std::uint32_t>(chunks.size()), out.view(),
                                meanwhile));
  const auto results = rdma::decode_register_results(answer);
  if (results.size() != chunks.size())
    return wire_error(fmt::format("{} chunks were asked for and {} answered", chunks.size(), results.size()));
  for (std::size_t i = 0; i < chunks.size(); ++i) MD_CHECK(keys_.take_result(block, chunks[i], results[i]));
  return {};
}

Result<transports::RdmaLocal> SinkRdma::memory_of(std::size_t block, const Piece& piece) {
  const auto length = static_cast<std::uint32_t>(piece.length);
  if (!piece.zero) {
    MD_TRY(const std::uint32_t key, keys_.local(block, piece.chunk));
    return transports::RdmaLocal{map_.at(block).engine() + piece.offset, length, key};
  }
  if (!zeros_region_) {
    zeros_ = std::make_unique<std::byte[]>(chunk_bytes);
    MD_TRY(zeros_region_, connections_.main->link().domain()->register_memory({zeros_.get(), chunk_bytes},
                                                                              transports::RdmaAccess::read_local));
  }
  return transports::RdmaLocal{zeros_.get(), length, zeros_region_->local_key()};
}

Result<void> SinkRdma::write_piece(std::size_t block, const Piece& piece) {
  MD_TRY(const transports::RdmaLocal from, memory_of(block, piece));
  // Neighbouring chunks take different queue pairs, so that a long run fills all of them.
  MD_CHECK(writes_.write(piece.chunk % writes_.lanes(), from, keys_.remote(block, piece.offset)));
  counters_.normal_pages.add(piece.length / page_size);
  written_bytes_ += piece.length;
  return account(piece.length);
}

}  // namespace migrationd::ram
