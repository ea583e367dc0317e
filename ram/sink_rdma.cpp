// SPDX-License-Identifier: Apache-2.0
#include "ram/sink_rdma.hpp"

#include "base/log.hpp"
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

SinkRdma::SinkRdma(RamMap& map, transports::BufferedWriter& writer, RdmaConnections& connections,
                   const StopSource& stop, SendCounters& counters, Options options)
    : map_(map),
      writer_(writer),
      connections_(connections),
      counters_(counters),
      options_(std::move(options)),
      pacer_(stop),
      keys_(map, connections.main->link().domain()),
      writes_(connections),
      requests_(map, connections, keys_, writes_) {}

SinkRdma::~SinkRdma() {
  log::debug("RDMA: {} requests for keys, {} of them awaited with no write posted behind them",
             connections_.key_requests, connections_.bare_key_requests);
}

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
  MD_CHECK(connections_.main->request(ControlType::ram_blocks_request, 1, {}));
  if (pinned) MD_CHECK(pin_blocks());
  MD_TRY(const rdma::ControlMessage answer, connections_.main->await_answer());
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
    MD_CHECK(write_all());
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
  MD_CHECK(write_all());
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
      pieces_.push_back({batch.block(), chunk, offset, stop - offset, batch.kind() != BatchKind::data});
      offset = stop;
    }
  }
}

bool SinkRdma::is_zero(const Piece& piece) const noexcept {
  const std::byte* const memory = map_.at(piece.block).engine() + piece.offset;
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
  MD_CHECK(sort_pieces());
  // The first request goes in front of these pages, too.
  if (requests_.due()) MD_CHECK(ask_and_write());
  for (const Piece& piece : pieces_) MD_CHECK(write_piece(piece));
  while (requests_.due()) MD_CHECK(ask_and_write());
  return {};
}

Result<void> SinkRdma::sort_pieces() {
  Piece zeros;  // not told yet
  std::size_t left = 0;
  for (const Piece& piece : pieces_) {
    if (keys_.has_remote(piece.block, piece.chunk)) {
      pieces_[left++] = piece;
    } else if (!keys_.is_wanted(piece.block, piece.chunk) && (piece.zero || is_zero(piece))) {
      MD_CHECK(add_zeros(zeros, piece));
    } else {
      requests_.want(piece.block, piece.chunk);
      waiting_.push_back(piece);
    }
  }
  pieces_.resize(left);
  return send_zeros(zeros);
}

Result<void> SinkRdma::ask_and_write() {
  MD_CHECK(requests_.next());
  while (!waiting_.empty() && keys_.has_remote(waiting_.front().block, waiting_.front().chunk)) {
    MD_CHECK(write_piece(waiting_.front()));
    waiting_.pop_front();
  }
  return requests_.register_ours();
}

Result<void> SinkRdma::write_all() {
  while (!requests_.idle()) MD_CHECK(ask_and_write());
  return {};
}

Result<void> SinkRdma::add_zeros(Piece& zeros, const Piece& piece) {
  if (connections_.large_requests && zeros.length != 0 && zeros.offset + zeros.length == piece.offset) {
    zeros.length += piece.length;
    return {};
  }
  MD_CHECK(send_zeros(zeros));
  zeros = piece;
  return {};
}

Result<void> SinkRdma::send_zeros(const Piece& piece) {
  if (piece.length == 0) return {};
  ByteWriter out;
  encode(out, rdma::Compress{0, static_cast<std::uint32_t>(piece.block), keys_.where(piece.block, piece.offset),
                             piece.length});
  MD_CHECK(connections_.main->send(ControlType::compress, out.view()));
  counters_.zero_pages.add(piece.length / page_size);
  return account(rdma::control_header_bytes + rdma::compress_bytes);
}

Result<transports::RdmaLocal> SinkRdma::memory_of(const Piece& piece) {
  const auto length = static_cast<std::uint32_t>(piece.length);
  if (!piece.zero) {
    MD_TRY(const std::uint32_t key, keys_.local(piece.block, piece.chunk));
    return transports::RdmaLocal{map_.at(piece.block).engine() + piece.offset, length, key};
  }
  if (!zeros_region_) {
    zeros_ = std::make_unique<std::byte[]>(chunk_bytes);
    MD_TRY(zeros_region_, connections_.main->link().domain()->register_memory({zeros_.get(), chunk_bytes},
                                                                              transports::RdmaAccess::read_local));
  }
  return transports::RdmaLocal{zeros_.get(), length, zeros_region_->local_key()};
}

Result<void> SinkRdma::write_piece(const Piece& piece) {
  MD_TRY(const transports::RdmaLocal from, memory_of(piece));
  // Neighbouring chunks take different queue pairs, so that a long run fills all of them.
  MD_CHECK(writes_.write(piece.chunk % writes_.lanes(), from, keys_.remote(piece.block, piece.offset)));
  counters_.normal_pages.add(piece.length / page_size);
  written_bytes_ += piece.length;
  return account(piece.length);
}

}  // namespace migrationd::ram
