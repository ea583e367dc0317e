// SPDX-License-Identifier: Apache-2.0
//
// Control messages of a migration over RDMA: bytes and their meaning (docs/formats/rdma.md).
//
// A message is one SEND: 16 bytes of header, then `length` bytes of payload. Everything is big-endian. What comes from
// the peer is checked here as far as one message can be judged by itself: lengths against what really came, counts
// against the payload, values against their ranges. Whether its time has come is for `conversation`, and whether its
// numbers name memory of ours for `chunks`.
//
// Thread: pure functions of values.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace migrationd::rdma {

inline constexpr std::size_t control_header_bytes = 16;
// What QEMU registers for one message; nobody may send more.
inline constexpr std::size_t control_buffer_bytes = std::size_t{512} << 10;
inline constexpr std::size_t control_payload_max = control_buffer_bytes - control_header_bytes;
// Records in one message.
inline constexpr std::uint32_t control_records_max = 4096;
// Bytes of the stream in one message.
inline constexpr std::size_t stream_part_bytes = std::size_t{32} << 10;

enum class ControlType : std::uint32_t {
  none,
  error,  // the sender gave up
  ready,  // the sender waits for a message
  qemu_file,
  ram_blocks_request,
  ram_blocks_result,
  compress,
  register_request,
  register_result,
  register_finished,
  unregister_request,
  unregister_finished,
};

// "REGISTER REQUEST"; for a number that is none of them, what QEMU calls it.
std::string control_name(std::uint32_t type);
inline std::string control_name(ControlType type) { return control_name(static_cast<std::uint32_t>(type)); }
// "RAM BLOCKS RESULT (5) control message", for errors.
std::string describe_control(ControlType type);

struct ControlMessage {
  ControlType type = ControlType::none;
  std::uint32_t repeat = 0;
  ByteView payload;  // a view of what was received
};

// One of the destination's blocks.
struct RemoteBlock {
  std::uint64_t address = 0;  // in the destination's process
  std::uint64_t offset = 0;   // what addresses in requests count from
  std::uint64_t length = 0;
  std::uint32_t key = 0;  // of the whole block if all is pinned
  bool operator==(const RemoteBlock&) const = default;
};

// Chunks [first, first + further] of a block, the first one named by an address (register) or its number (unregister).
struct ChunkRequest {
  std::uint64_t where = 0;
  std::uint32_t block = 0;
  std::uint64_t further = 0;
  bool operator==(const ChunkRequest&) const = default;
};

struct RegisterResult {
  std::uint32_t key = 0;
  std::uint64_t block_address = 0;
  bool operator==(const RegisterResult&) const = default;
};

// Bytes that are all `value`; 0 is the only one.
struct Compress {
  std::uint32_t value = 0;
  std::uint32_t block = 0;
  std::uint64_t where = 0;  // an address, as in a register request
  std::uint64_t length = 0;
  bool operator==(const Compress&) const = default;
};

inline constexpr std::size_t remote_block_bytes = 32;
inline constexpr std::size_t chunk_request_bytes = 24;
inline constexpr std::size_t register_result_bytes = 16;
inline constexpr std::size_t compress_bytes = 24;

// --- decoding: ErrorKind::wire, or ErrorKind::limit for what is too much ----------------------------------------
// `received`: all bytes of one SEND. The payload has the length and count that its type wants.
Result<ControlMessage> decode_control(ByteView received);
// Payloads of messages that decode_control() passed.
std::vector<RemoteBlock> decode_remote_blocks(const ControlMessage& message);
std::vector<ChunkRequest> decode_chunk_requests(const ControlMessage& message);
std::vector<RegisterResult> decode_register_results(const ControlMessage& message);
// Error: a value other than zero.
Result<Compress> decode_compress(const ControlMessage& message);

// --- encoding ---------------------------------------------------------------------------------------------------
// Into 16 bytes at `out`.
void encode_control_header(std::byte* out, ControlType type, std::uint32_t repeat, std::uint32_t length) noexcept;
void encode(ByteWriter& out, const RemoteBlock& block);
void encode(ByteWriter& out, const ChunkRequest& request);
void encode(ByteWriter& out, const RegisterResult& result);
void encode(ByteWriter& out, const Compress& compress);

}  // namespace migrationd::rdma
