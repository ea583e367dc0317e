// SPDX-License-Identifier: Apache-2.0
#include "protocol/rdma/hello.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::rdma {
namespace {

constexpr std::size_t common_bytes = 8;
constexpr std::size_t own_bytes = 16;

constexpr std::uint32_t flag_pin_all = 1;
constexpr std::uint32_t flag_large_requests = 1 << 8;
constexpr unsigned lanes_shift = 16;
constexpr unsigned lane_shift = 24;
constexpr std::uint32_t number_mask = 0xff;

}  // namespace

Bytes encode_hello(const Hello& hello) {
  std::uint32_t flags = hello.pin_all ? flag_pin_all : 0;
  if (hello.large_requests) flags |= flag_large_requests;
  flags |= std::uint32_t{hello.lanes} << lanes_shift;
  flags |= std::uint32_t{hello.lane} << lane_shift;
  ByteWriter out;
  out.u32(hello.version).u32(flags);
  if (hello.lanes != 0 || hello.lane != 0 || hello.token != 0) out.u64(hello.token);
  return std::move(out).take();
}

Result<Hello> decode_hello(ByteView private_data) {
  if (private_data.size() < common_bytes)
    return wire_error(fmt::format("RDMA: {} bytes of private data, 8 are needed", private_data.size()));
  const std::uint32_t flags = load_be<std::uint32_t>(private_data.data() + 4);
  Hello hello;
  hello.version = load_be<std::uint32_t>(private_data.data());
  hello.pin_all = (flags & flag_pin_all) != 0;
  hello.large_requests = (flags & flag_large_requests) != 0;
  hello.lanes = static_cast<std::uint8_t>((flags >> lanes_shift) & number_mask);
  hello.lane = static_cast<std::uint8_t>((flags >> lane_shift) & number_mask);
  if (private_data.size() >= own_bytes) hello.token = load_be<std::uint64_t>(private_data.data() + common_bytes);
  return hello;
}

Result<Hello> answer_hello(const Hello& asked, std::uint64_t token) {
  if (asked.version != hello_version)
    return wire_error(fmt::format("Unknown source RDMA version: {}, bailing...", asked.version));
  Hello answer;
  answer.pin_all = asked.pin_all;
  answer.large_requests = asked.large_requests;
  answer.lanes = std::min(asked.lanes, extra_lanes_max);
  if (answer.lanes != 0) answer.token = token;
  return answer;
}

Hello settle_hello(const Hello& asked, const Hello& answered) {
  Hello settled;
  settled.pin_all = asked.pin_all && answered.pin_all;
  settled.large_requests = asked.large_requests && answered.large_requests;
  settled.lanes = std::min(asked.lanes, answered.lanes);
  if (settled.lanes != 0) settled.token = answered.token;
  return settled;
}

}  // namespace migrationd::rdma
