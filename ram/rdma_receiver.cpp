// SPDX-License-Identifier: Apache-2.0
#include "ram/rdma_receiver.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd::ram {

using rdma::ControlMessage;
using rdma::ControlType;

namespace {

// Registrations may overlap (a chunk on its own, and as one of several); honest sources register every byte once.
constexpr std::uint64_t registered_times = 2;

}  // namespace

RdmaReceiver::RdmaReceiver(RdmaChannel& channel, RamMap& map, PageStore& store, ReceiveCounters& counters,
                           std::vector<Block> blocks, const std::vector<std::uint64_t>& lengths)
    : channel_(channel),
      control_(*channel.connections().main),
      map_(map),
      store_(store),
      counters_(counters),
      blocks_(std::move(blocks)),
      space_(lengths) {
  for (const std::uint64_t length : lengths) total_bytes_ += length;
}

Result<std::unique_ptr<RdmaReceiver>> RdmaReceiver::make(RdmaChannel& channel, RamMap& map, PageStore& store,
                                                         ReceiveCounters& counters,
                                                         const std::vector<std::string>& names) {
  std::vector<Block> blocks;
  std::vector<std::uint64_t> lengths;
  for (const std::string& name : names) {
    Block block;
    MD_TRY(block.index, map.find(name));
    lengths.push_back(map.at(block.index).length());
    block.expected.resize(rdma::chunks_of(lengths.back()));
    blocks.push_back(std::move(block));
  }
  return std::unique_ptr<RdmaReceiver>(new RdmaReceiver(channel, map, store, counters, std::move(blocks), lengths));
}

Error RdmaReceiver::at_block(Error error, std::size_t block, std::uint64_t offset) const {
  return std::move(error).with(
      fmt::format("RDMA: block '{}' at {}", printable(map_.at(blocks_[block].index).name()), hex(offset)));
}

std::uint64_t RdmaReceiver::address_of(const Block& block) const noexcept {
  return reinterpret_cast<std::uint64_t>(map_.at(block.index).engine());
}

Result<void> RdmaReceiver::serve() {
  if (!channel_.at_message_end())
    return wire_error("RDMA: a HOOK record with bytes of the stream behind it in the same message");
  if (dropped_) return wire_error("RDMA: a HOOK record after the switch to postcopy");
  while (true) {
    MD_TRY(const auto message, control_.receive());
    if (!message) return Error(ErrorKind::peer, "RDMA: the source disconnected in the middle of a RAM section");
    MD_TRY(const bool finished, act(*message));
    if (finished) break;
  }
  // What was written over other queue pairs is visible only behind their own last word.
  for (const auto& lane : channel_.connections().lanes) MD_CHECK(lane->await_fence());
  return {};
}

// True: the stream goes on.
Result<bool> RdmaReceiver::act(const ControlMessage& message) {
  if (!told_ && message.type != ControlType::ram_blocks_request)
    return wire_error(fmt::format("RDMA: a {} before the blocks were asked for", rdma::describe_control(message.type)));
  Result<void> done;
  switch (message.type) {
    case ControlType::ram_blocks_request:
      done = tell_blocks();
      break;
    case ControlType::compress:
      done = take_zeros(message);
      break;
    case ControlType::register_request:
      done = register_chunks(message);
      break;
    case ControlType::unregister_request:
      done = unregister_chunks(message);
      break;
    case ControlType::register_finished:
      return true;
    case ControlType::none:
    case ControlType::error:
    case ControlType::ready:
    case ControlType::qemu_file:
    case ControlType::ram_blocks_result:
    case ControlType::register_result:
    case ControlType::unregister_finished:
      done = wire_error(fmt::format("RDMA: Unknown control message {}", rdma::control_name(message.type)));
      break;
  }
  if (!done) return std::move(done).error();
  return false;
}

// --- the blocks -------------------------------------------------------------------------------------------------

Result<void> RdmaReceiver::tell_blocks() {
  if (told_) return wire_error("RDMA: the blocks were asked for twice");
  told_ = true;
  ByteWriter out;
  for (std::size_t index = 0; index < blocks_.size(); ++index) {
    const Block& block = blocks_[index];
    rdma::RemoteBlock record;
    record.address = address_of(block);
    record.offset = space_.offset_of(index);
    record.length = map_.at(block.index).length();
    if (channel_.connections().pin_all) {
      rdma::ChunkRange whole;
      whole.block = index;
      whole.count = block.expected.size();
      whole.bytes = {index, 0, record.length};
      MD_TRY(record.key, register_range(whole));
    }
    encode(out, record);
  }
  return control_.answer(ControlType::ram_blocks_result, 1, out.view());
}

// --- zeros ------------------------------------------------------------------------------------------------------

Result<void> RdmaReceiver::take_zeros(const ControlMessage& message) {
  MD_TRY(const rdma::Compress compress, rdma::decode_compress(message));
  MD_TRY(const rdma::BlockRange range, space_.prove_compress(compress, page_size));
  MD_TRY(const GuestSpan span, map_.prove(blocks_[range.block].index, range.offset, range.length));
  MD_CHECK(store_.place_zero(span));
  counters_.zero_pages.add(range.length / page_size);
  return {};
}

// --- registrations ----------------------------------------------------------------------------------------------

Result<void> RdmaReceiver::register_chunks(const ControlMessage& message) {
  ByteWriter out;
  for (const rdma::ChunkRequest& request : rdma::decode_chunk_requests(message)) {
    MD_TRY(const rdma::ChunkRange range, space_.prove_register(request));
    MD_TRY(const std::uint32_t key, register_range(range));
    encode(out, rdma::RegisterResult{key, address_of(blocks_[range.block])});
  }
  return control_.answer(ControlType::register_result, message.repeat, out.view());
}

Result<std::uint32_t> RdmaReceiver::register_range(const rdma::ChunkRange& range) {
  Block& block = blocks_[range.block];
  const auto found = block.registered.find(range.first);
  if (found != block.registered.end()) {
    if (found->second.chunks == range.count) return found->second.region->remote_key();
    return at_block(
        wire_error(fmt::format("registered for {} chunks, and now for {}", found->second.chunks, range.count)),
        range.block, range.bytes.offset);
  }
  if (range.bytes.length > registered_times * total_bytes_ - registered_bytes_) {
    return at_block(
        Error(ErrorKind::limit, fmt::format("{} bytes are registered for a machine of {}, and more is asked",
                                            registered_bytes_, total_bytes_)),
        range.block, range.bytes.offset);
  }
  MD_CHECK(expect(range));
  MD_TRY(const GuestSpan span, map_.prove(block.index, range.bytes.offset, range.bytes.length));
  auto region = control_.link().domain()->register_memory(map_.memory(span), transports::RdmaAccess::write_remote);
  if (!region) return at_block(std::move(region).error().with("cannot get rkey"), range.block, range.bytes.offset);
  const std::uint32_t key = (*region)->remote_key();
  registered_bytes_ += range.bytes.length;
  block.registered.emplace(range.first, Registration{range.count, range.bytes.length, std::move(*region)});
  return key;
}

// From now on their bytes come without a word. What is not written is zero.
Result<void> RdmaReceiver::expect(const rdma::ChunkRange& range) {
  Block& block = blocks_[range.block];
  const std::uint64_t end_of_block = map_.at(block.index).length();
  for (std::uint64_t chunk = range.first; chunk < range.first + range.count; ++chunk) {
    if (block.expected[chunk]) continue;
    const std::uint64_t offset = chunk * rdma::chunk_bytes;
    const std::uint64_t length = std::min(rdma::chunk_bytes, end_of_block - offset);
    MD_TRY(const GuestSpan span, map_.prove(block.index, offset, length));
    MD_CHECK(store_.place_zero(span));
    store_.placed(span);
    block.expected[chunk] = true;
  }
  return {};
}

Result<void> RdmaReceiver::unregister_chunks(const ControlMessage& message) {
  for (const rdma::ChunkRequest& request : rdma::decode_chunk_requests(message)) {
    MD_TRY(const rdma::ChunkRange range, space_.prove_unregister(request));
    auto& registered = blocks_[range.block].registered;
    const auto found = registered.find(range.first);
    if (found == registered.end()) {
      return at_block(wire_error(fmt::format("chunk {} is to be given up and was never registered", range.first)),
                      range.block, range.bytes.offset);
    }
    registered_bytes_ -= found->second.bytes;
    registered.erase(found);
  }
  return control_.answer(ControlType::unregister_finished, message.repeat, {});
}

void RdmaReceiver::drop_registrations() noexcept {
  dropped_ = true;
  for (Block& block : blocks_) block.registered.clear();
  registered_bytes_ = 0;
}

}  // namespace migrationd::ram
