// SPDX-License-Identifier: Apache-2.0
//
// Control messages of an RDMA peer. The input is what a peer says: first private data (16 bytes), then messages, each
// behind two bytes of its length as the adapter gives it, and one byte that tells what our side does before it. What is
// taken must be proved: lengths, turns, and ranges that lie in our blocks.
#include "protocol/rdma/chunks.hpp"
#include "protocol/rdma/conversation.hpp"
#include "protocol/rdma/hello.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::rdma;

namespace {

void must(bool condition) {
  if (!condition) std::abort();
}

constexpr std::array<std::uint64_t, 3> lengths{5 * chunk_bytes + 4096, 4096, 3 * chunk_bytes};
constexpr std::uint64_t page = 4096;

void check_range(const BlockRange& range) {
  must(range.block < lengths.size());
  must(range.length > 0 && range.length <= lengths[range.block]);
  must(range.offset <= lengths[range.block] - range.length);
}

void check_chunks(const ChunkRange& range) {
  check_range(range.bytes);
  must(range.count > 0 && range.first + range.count <= chunks_of(lengths[range.block]));
}

void take_numbers(const AddressSpace& space, const ControlMessage& message) {
  if (message.type == ControlType::ram_blocks_result) {
    must(decode_remote_blocks(message).size() * remote_block_bytes == message.payload.size());
  } else if (message.type == ControlType::register_result) {
    must(decode_register_results(message).size() == message.repeat);
  } else if (message.type == ControlType::register_request) {
    const auto requests = decode_chunk_requests(message);
    must(requests.size() == message.repeat);
    for (const ChunkRequest& request : requests)
      if (const auto range = space.prove_register(request)) check_chunks(*range);
  } else if (message.type == ControlType::unregister_request) {
    for (const ChunkRequest& request : decode_chunk_requests(message))
      if (const auto range = space.prove_unregister(request)) check_chunks(*range);
  } else if (message.type == ControlType::compress) {
    const auto compress = decode_compress(message);
    if (!compress) return;
    const auto range = space.prove_compress(*compress, page);
    if (!range) return;
    check_range(*range);
    must(range->offset % page == 0 && range->length % page == 0);
  }
}

// What our side does between two messages: 0 nothing, 1 says READY, else sends that type if it may.
void act(Conversation& conversation, std::uint8_t what) {
  if (what == 1 && !conversation.is_asking()) conversation.said_ready();
  if (what < 2 || what > 11 || !conversation.may_send() || !conversation.answered()) return;
  conversation.sent(static_cast<ControlType>(what));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ByteReader in(std::as_bytes(std::span(data, size)));
  const AddressSpace space(lengths);
  const auto said = in.bytes(std::min<std::size_t>(in.remaining(), 16));
  const auto hello = decode_hello(*said);
  if (!hello) return 0;
  if (const auto answer = answer_hello(*hello, 42)) {
    must(answer->lanes <= hello->lanes && answer->lanes <= extra_lanes_max);
    const Hello settled = settle_hello(*hello, *answer);
    must(settled.pin_all == hello->pin_all && settled.large_requests == hello->large_requests);
    must(settled.lanes == answer->lanes);
    const Bytes again = encode_hello(*hello);
    must(*decode_hello(again) == *hello);
  }
  Conversation conversation(hello->lane % 2);
  while (in.remaining() >= 3) {
    act(conversation, *in.u8());
    const std::size_t length = std::min<std::size_t>(*in.u16(), in.remaining());
    const auto bytes = in.bytes(length);
    const auto message = decode_control(*bytes);
    if (!message) continue;
    must(message->payload.size() + control_header_bytes == length);
    take_numbers(space, *message);
    const bool asked = conversation.is_asking();
    const auto what = conversation.received(*message);
    if (!what) return 0;
    if (*what == Incoming::message) must(asked || hello->lane % 2 != 0);
    if (*what == Incoming::ready) must(conversation.may_send());
    if (*what == Incoming::answer) must(conversation.answered());
  }
  return 0;
}
