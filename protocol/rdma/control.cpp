// SPDX-License-Identifier: Apache-2.0
#include "protocol/rdma/control.hpp"

#include <fmt/format.h>

#include <array>
#include <string_view>

namespace migrationd::rdma {
namespace {

constexpr std::array<std::string_view, 12> names{"NONE",
                                                 "ERROR",
                                                 "READY",
                                                 "QEMU FILE",
                                                 "RAM BLOCKS REQUEST",
                                                 "RAM BLOCKS RESULT",
                                                 "COMPRESS",
                                                 "REGISTER REQUEST",
                                                 "REGISTER RESULT",
                                                 "REGISTER FINISHED",
                                                 "UNREGISTER REQUEST",
                                                 "UNREGISTER FINISHED"};
static_assert(names.size() == static_cast<std::size_t>(ControlType::unregister_finished) + 1);

Error wrong_length(ControlType type, std::size_t length, std::uint32_t repeat) {
  return wire_error(fmt::format("RDMA: a {} with {} bytes and {} records", describe_control(type), length, repeat));
}

// Whether a payload of that length and count can be of that type. The repeat field of messages without records means
// nothing: QEMU 7.2 and 10.0 write different ones.
bool fits(ControlType type, std::size_t length, std::uint32_t repeat) {
  const auto is_records_of = [&](std::size_t size) { return repeat > 0 && length == repeat * size; };
  switch (type) {
    case ControlType::qemu_file:
      return length > 0 && length <= stream_part_bytes;
    case ControlType::ram_blocks_result:
      return length % remote_block_bytes == 0 && length / remote_block_bytes <= control_records_max;
    case ControlType::compress:
      return length == compress_bytes;
    case ControlType::register_request:
    case ControlType::unregister_request:
      return is_records_of(chunk_request_bytes);
    case ControlType::register_result:
      return is_records_of(register_result_bytes);
    case ControlType::none:
    case ControlType::error:
    case ControlType::ready:
    case ControlType::ram_blocks_request:
    case ControlType::register_finished:
    case ControlType::unregister_finished:
      break;
  }
  return length == 0;
}

template <class Record, class Decode>
std::vector<Record> records_of(const ControlMessage& message, std::size_t size, Decode decode) {
  std::vector<Record> out;
  out.reserve(message.payload.size() / size);
  for (std::size_t at = 0; at + size <= message.payload.size(); at += size)
    out.push_back(decode(message.payload.data() + at));
  return out;
}

std::uint32_t u32_at(const std::byte* from) { return load_be<std::uint32_t>(from); }
std::uint64_t u64_at(const std::byte* from) { return load_be<std::uint64_t>(from); }

}  // namespace

std::string control_name(std::uint32_t type) {
  return type < names.size() ? std::string(names[type]) : fmt::format("??BAD CONTROL VALUE?? ({})", type);
}

std::string describe_control(ControlType type) {
  return fmt::format("{} ({}) control message", control_name(type), static_cast<std::uint32_t>(type));
}

Result<ControlMessage> decode_control(ByteView received) {
  if (received.size() < control_header_bytes)
    return wire_error(fmt::format("RDMA: a control message of {} bytes: its header alone has 16", received.size()));
  const std::uint32_t length = u32_at(received.data());
  const std::uint32_t type = u32_at(received.data() + 4);
  ControlMessage message;
  message.repeat = u32_at(received.data() + 8);
  if (length > control_payload_max) return Error(ErrorKind::limit, fmt::format("RDMA: too long length: {}", length));
  if (length + control_header_bytes != received.size())
    return wire_error(fmt::format("RDMA: Malformed length: {} byte_len {}", length, received.size()));
  if (message.repeat > control_records_max)
    return Error(ErrorKind::limit, fmt::format("RDMA: Too many requests in this message ({})", message.repeat));
  if (type >= names.size() || type == 0)
    return wire_error(fmt::format("RDMA: Unknown control message {}", control_name(type)));
  message.type = static_cast<ControlType>(type);
  message.payload = received.subspan(control_header_bytes);
  if (!fits(message.type, length, message.repeat)) return wrong_length(message.type, length, message.repeat);
  return message;
}

std::vector<RemoteBlock> decode_remote_blocks(const ControlMessage& message) {
  return records_of<RemoteBlock>(message, remote_block_bytes, [](const std::byte* at) {
    return RemoteBlock{u64_at(at), u64_at(at + 8), u64_at(at + 16), u32_at(at + 24)};
  });
}

std::vector<ChunkRequest> decode_chunk_requests(const ControlMessage& message) {
  return records_of<ChunkRequest>(message, chunk_request_bytes, [](const std::byte* at) {
    return ChunkRequest{u64_at(at), u32_at(at + 8), u64_at(at + 16)};
  });
}

std::vector<RegisterResult> decode_register_results(const ControlMessage& message) {
  return records_of<RegisterResult>(message, register_result_bytes, [](const std::byte* at) {
    return RegisterResult{u32_at(at), u64_at(at + 8)};
  });
}

Result<Compress> decode_compress(const ControlMessage& message) {
  const std::byte* const at = message.payload.data();
  const Compress compress{u32_at(at), u32_at(at + 4), u64_at(at + 8), u64_at(at + 16)};
  if (compress.value != 0) return wire_error(fmt::format("RDMA: Zero page with non-zero ({}) value", compress.value));
  return compress;
}

void encode_control_header(std::byte* out, ControlType type, std::uint32_t repeat, std::uint32_t length) noexcept {
  store_be(out, length);
  store_be(out + 4, static_cast<std::uint32_t>(type));
  store_be(out + 8, repeat);
  store_be(out + 12, std::uint32_t{0});
}

void encode(ByteWriter& out, const RemoteBlock& block) {
  out.u64(block.address).u64(block.offset).u64(block.length).u32(block.key).u32(0);
}

void encode(ByteWriter& out, const ChunkRequest& request) {
  out.u64(request.where).u32(request.block).u32(0).u64(request.further);
}

void encode(ByteWriter& out, const RegisterResult& result) { out.u32(result.key).u32(0).u64(result.block_address); }

void encode(ByteWriter& out, const Compress& compress) {
  out.u32(compress.value).u32(compress.block).u64(compress.where).u64(compress.length);
}

}  // namespace migrationd::rdma
