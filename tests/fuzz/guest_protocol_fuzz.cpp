// SPDX-License-Identifier: Apache-2.0
// A packet of the guest protocol as it comes from the socket: its header, then its body as its type says. What is taken
// is written again to the same bytes. A first byte of 0xff stands for a state's memfd instead.
#include "guest/protocol.hpp"

#include <algorithm>
#include <cstdlib>

using namespace migrationd;
using namespace migrationd::guest;

namespace {

void must_equal(ByteView written, ByteView in) {
  if (!std::equal(written.begin(), written.end(), in.begin(), in.end())) std::abort();
}

template <class Body>
void try_body(ByteView body) {
  const auto read = decode<Body>(body);
  if (!read) return;
  ByteWriter out;
  encode(*read, out);
  must_equal(out.view(), body);
}

void try_request(Type type, ByteView body) {
  switch (type) {
    case Type::hello:
      return try_body<Hello>(body);
    case Type::add_block:
      return try_body<AddBlock>(body);
    case Type::new_block:
      return try_body<NewBlock>(body);
    case Type::add_device:
      return try_body<AddDevice>(body);
    case Type::ready:
      return try_body<Ready>(body);
    case Type::add_blocker:
      return try_body<AddBlocker>(body);
    case Type::delete_blocker:
      return try_body<BlockerNumber>(body);
    case Type::given_back:
      return try_body<GivenBack>(body);
    case Type::throttle:
      return try_body<Throttle>(body);
    case Type::load:
      return try_body<StateLength>(body);
    case Type::watch:
      return try_body<Watch>(body);
    case Type::unwatch:
      return try_body<Unwatch>(body);
    case Type::dirty_log:
      return try_body<DirtyLogSwitch>(body);
    case Type::outcome:
      return try_body<OutcomeNotice>(body);
    case Type::detach:
    case Type::stop:
    case Type::start:
    case Type::save:
    case Type::dirty_sync:
    case Type::no_huge_pages:
      return try_body<Empty>(body);
  }
}

void try_reply(std::uint16_t type, ByteView body) {
  if (type == refusal) return try_body<Refusal>(body);
  switch (static_cast<Type>(type & ~reply_bit)) {
    case Type::hello:
      return try_body<Welcome>(body);
    case Type::add_blocker:
      return try_body<BlockerNumber>(body);
    case Type::save:
      return try_body<StateLength>(body);
    default:
      return try_body<Empty>(body);
  }
}

void try_state(ByteView bytes) {
  const auto sections = decode_state(bytes);
  if (!sections) return;
  const auto written = encode_state(*sections);
  if (!written) std::abort();
  must_equal(*written, bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ByteView bytes = std::as_bytes(std::span(data, size));
  if (size > 0 && data[0] == 0xff && size > 1 && data[1] != 0xff) {
    try_state(bytes.subspan(1));
    return 0;
  }
  ByteReader in(bytes);
  const auto header = decode_header(in);
  if (!header) return 0;
  ByteWriter out;
  encode_header(*header, out);
  must_equal(out.view(), bytes.first(header_bytes));
  if (fds_of(header->type).most > packet_fds) std::abort();
  if (header->is_reply()) {
    try_reply(header->type, in.rest());
  } else {
    try_request(static_cast<Type>(header->type), in.rest());
  }
  return 0;
}
