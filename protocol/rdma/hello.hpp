// SPDX-License-Identifier: Apache-2.0
//
// What the two sides of an RDMA connection say with the connection manager's own messages, before any of ours: private
// data (docs/formats/rdma.md). Eight bytes are QEMU's, version and flags. The communication manager pads them with
// zeros, and QEMU answers only flags that it knows; so what only this daemon understands lies in other flags and behind
// the eight bytes.
//
// Thread: pure functions of values.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"

#include <cstdint>

namespace migrationd::rdma {

inline constexpr std::uint32_t hello_version = 1;
// Queue pairs beside the main one.
inline constexpr std::uint8_t extra_lanes_max = 15;

struct Hello {
  std::uint32_t version = hello_version;
  bool pin_all = false;  // asked for; in an answer: granted
  // Ours. Large requests: several chunks registered by one message, zeros told over chunks' bounds. QEMU's destinations
  // answer the bytes of one record whatever was asked.
  bool large_requests = false;
  // Ours. Further queue pairs for pages: asked for by the source, granted by the destination.
  std::uint8_t lanes = 0;
  // Ours. The number of such a queue pair, from 1 on; 0: any other connection.
  std::uint8_t lane = 0;
  // Ours. The destination's, given with granted lanes and said by each of them: they belong to this migration.
  std::uint64_t token = 0;
  bool operator==(const Hello&) const = default;
};

// Eight bytes, or 16 when something of ours is said.
Bytes encode_hello(const Hello& hello);
// The version is not judged. Error: fewer than 8 bytes.
Result<Hello> decode_hello(ByteView private_data);

// The destination's answer to a source's main connection: what it asked for, as far as we go along with it.
// Error: a version that is not ours.
Result<Hello> answer_hello(const Hello& asked, std::uint64_t token);
// What came of what we asked for. Never more than that; the answer's version is not looked at, as in QEMU.
Hello settle_hello(const Hello& asked, const Hello& answered);

}  // namespace migrationd::rdma
