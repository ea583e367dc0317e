// SPDX-License-Identifier: Apache-2.0
// Control messages byte by byte, from the conversation in docs/spec/rdma.md section 8, and whose turn it is, as
// stories.
#include "protocol/rdma/chunks.hpp"
#include "protocol/rdma/control.hpp"
#include "protocol/rdma/conversation.hpp"
#include "protocol/rdma/hello.hpp"
#include "tests/unit/catch.hpp"

using namespace migrationd;
using namespace migrationd::rdma;

namespace {

Bytes message(std::uint32_t type, std::uint32_t repeat, ByteView payload, std::uint32_t length) {
  ByteWriter out;
  out.u32(length).u32(type).u32(repeat).u32(0).bytes(payload);
  return std::move(out).take();
}
Bytes message(ControlType type, std::uint32_t repeat, ByteView payload = {}) {
  return message(static_cast<std::uint32_t>(type), repeat, payload, static_cast<std::uint32_t>(payload.size()));
}

std::string refusal(const Bytes& bytes) {
  const auto decoded = decode_control(bytes);
  REQUIRE_FALSE(decoded.has_value());
  return decoded.error().text();
}

bool contains(const std::string& text, std::string_view part) { return text.find(part) != std::string::npos; }

ControlMessage of(ControlType type, ByteView payload = {}) { return {type, 1, payload}; }

}  // namespace

TEST_CASE("RdmaControl.a_ready_is_the_sixteen_bytes_seen_on_the_wire") {
  std::array<std::byte, control_header_bytes> bytes{};
  encode_control_header(bytes.data(), ControlType::ready, 1, 0);
  ByteWriter expected;
  expected.u32(0).u32(2).u32(1).u32(0);
  CHECK(Bytes(bytes.begin(), bytes.end()) == std::move(expected).take());
}

TEST_CASE("RdmaControl.reads_the_recorded_answers_of_a_real_destination") {
  ByteWriter blocks;
  blocks.u64(0x00007f9373800000).u64(0).u64(0x1000000).u32(0).u32(0);
  blocks.u64(0x00007f9372800000).u64(0x1080000).u64(0x20000).u32(0x5015).u32(0);
  const Bytes told = message(ControlType::ram_blocks_result, 1, blocks.view());
  const auto decoded = decode_control(told);
  REQUIRE(decoded.has_value());
  const auto list = decode_remote_blocks(*decoded);
  REQUIRE(list.size() == 2);
  CHECK(list[0] == RemoteBlock{0x00007f9373800000, 0, 0x1000000, 0});
  CHECK(list[1] == RemoteBlock{0x00007f9372800000, 0x1080000, 0x20000, 0x5015});

  ByteWriter result;
  result.u32(0x2074).u32(0).u64(0x00007f9373800000);
  const Bytes registered = message(ControlType::register_result, 1, result.view());
  const auto answer = decode_control(registered);
  REQUIRE(answer.has_value());
  CHECK(decode_register_results(*answer) == std::vector{RegisterResult{0x2074, 0x00007f9373800000}});
}

TEST_CASE("RdmaControl.writes_requests_as_they_were_recorded") {
  ByteWriter request;
  encode(request, ChunkRequest{0x100000000, 0, 0});
  ByteWriter expected;
  expected.u64(0x100000000).u32(0).u32(0).u64(0);
  CHECK(std::move(request).take() == std::move(expected).take());

  ByteWriter zeros;
  encode(zeros, Compress{0, 3, 0x400000000, 0x20000});
  ByteWriter recorded;
  recorded.u32(0).u32(3).u64(0x400000000).u64(0x20000);
  CHECK(std::move(zeros).take() == std::move(recorded).take());
}

TEST_CASE("RdmaControl.records_come_back_as_they_went") {
  ByteWriter out;
  encode(out, RemoteBlock{1, 2, 3, 4});
  const Bytes blocks = message(ControlType::ram_blocks_result, 1, out.view());
  CHECK(decode_remote_blocks(*decode_control(blocks)) == std::vector{RemoteBlock{1, 2, 3, 4}});
  out.clear();
  encode(out, ChunkRequest{5, 6, 7});
  encode(out, ChunkRequest{8, 9, 10});
  const Bytes requests = message(ControlType::unregister_request, 2, out.view());
  CHECK(decode_chunk_requests(*decode_control(requests)) == std::vector{ChunkRequest{5, 6, 7}, ChunkRequest{8, 9, 10}});
  out.clear();
  encode(out, RegisterResult{11, 12});
  const Bytes results = message(ControlType::register_result, 1, out.view());
  CHECK(decode_register_results(*decode_control(results)) == std::vector{RegisterResult{11, 12}});
  out.clear();
  encode(out, Compress{0, 13, 14, 15});
  const Bytes compress = message(ControlType::compress, 1, out.view());
  CHECK(*decode_compress(*decode_control(compress)) == Compress{0, 13, 14, 15});
}

TEST_CASE("RdmaControl.takes_stream_bytes_with_either_repeat_count") {
  const Bytes payload(stream_part_bytes, std::byte{7});
  for (const std::uint32_t repeat : {0u, 1u}) {
    const Bytes bytes = message(ControlType::qemu_file, repeat, payload);
    const auto decoded = decode_control(bytes);
    REQUIRE(decoded.has_value());
    CHECK(decoded->repeat == repeat);
    CHECK(decoded->payload.size() == payload.size());
  }
}

TEST_CASE("RdmaControl.refuses_lengths_that_are_not_what_came") {
  CHECK(contains(refusal(Bytes(15)), "a control message of 15 bytes"));
  CHECK(contains(refusal(message(2, 1, {}, 1)), "Malformed length: 1 byte_len 16"));
  CHECK(contains(refusal(message(3, 0, Bytes(8), 7)), "Malformed length: 7 byte_len 24"));
  CHECK(contains(refusal(message(3, 0, {}, 524273)), "too long length: 524273"));
  CHECK(contains(refusal(message(3, 0, {}, 0xffffffff)), "too long length"));
}

TEST_CASE("RdmaControl.refuses_types_counts_and_payloads_that_do_not_fit") {
  CHECK(contains(refusal(message(0, 1, {}, 0)), "Unknown control message NONE"));
  CHECK(contains(refusal(message(12, 1, {}, 0)), "??BAD CONTROL VALUE?? (12)"));
  CHECK(contains(refusal(message(ControlType::ready, 4097)), "Too many requests in this message (4097)"));
  CHECK(contains(refusal(message(ControlType::ready, 1, Bytes(4))), "READY (2) control message with 4 bytes"));
  CHECK(contains(refusal(message(ControlType::qemu_file, 0)), "with 0 bytes"));
  CHECK(contains(refusal(message(ControlType::qemu_file, 0, Bytes(stream_part_bytes + 1))), "with 32769 bytes"));
  CHECK(contains(refusal(message(ControlType::register_request, 0)), "REGISTER REQUEST"));
  CHECK(contains(refusal(message(ControlType::register_request, 2, Bytes(24))), "24 bytes and 2 records"));
  CHECK(contains(refusal(message(ControlType::register_result, 1, Bytes(24))), "REGISTER RESULT"));
  CHECK(contains(refusal(message(ControlType::ram_blocks_result, 1, Bytes(31))), "RAM BLOCKS RESULT"));
  CHECK(contains(refusal(message(ControlType::compress, 1, Bytes(23))), "COMPRESS"));
  ByteWriter out;
  encode(out, Compress{1, 0, 0, 4096});
  const Bytes bytes = message(ControlType::compress, 1, out.view());
  CHECK(contains(decode_compress(*decode_control(bytes)).error().text(), "Zero page with non-zero (1) value"));
}

TEST_CASE("RdmaHello.says_eight_bytes_to_others_and_sixteen_among_ourselves") {
  ByteWriter expected;
  expected.u32(1).u32(1);
  CHECK(encode_hello({.pin_all = true}) == std::move(expected).take());
  const Hello full{1, true, true, 3, 2, 0x1234567890abcdef};
  CHECK(encode_hello(full).size() == 16);
  Bytes padded = encode_hello(full);
  padded.resize(56);
  CHECK(*decode_hello(padded) == full);
  Bytes plain = encode_hello({});
  plain.resize(56);
  CHECK(*decode_hello(plain) == Hello{});
  CHECK_FALSE(decode_hello(Bytes(7)).has_value());
}

TEST_CASE("RdmaHello.a_destination_grants_what_it_knows_and_refuses_other_versions") {
  CHECK(*answer_hello({.pin_all = true}, 77) == Hello{.pin_all = true});
  CHECK(*answer_hello({.large_requests = true}, 77) == Hello{.large_requests = true});
  CHECK(*answer_hello({.lanes = 200}, 77) == Hello{.lanes = extra_lanes_max, .token = 77});
  for (const std::uint32_t version : {0u, 2u}) {
    const auto answer = answer_hello({.version = version}, 77);
    REQUIRE_FALSE(answer.has_value());
    CHECK(contains(answer.error().text(), "Unknown source RDMA version"));
  }
}

TEST_CASE("RdmaHello.a_source_gets_no_more_than_it_asked_for") {
  CHECK(settle_hello({}, {.pin_all = true, .lanes = 4, .token = 5}) == Hello{});
  CHECK(settle_hello({.pin_all = true}, {}) == Hello{});
  CHECK(settle_hello({.pin_all = true, .lanes = 2}, {.version = 9, .pin_all = true, .lanes = 7, .token = 5}) ==
        Hello{.pin_all = true, .lanes = 2, .token = 5});
}

TEST_CASE("RdmaConversation.nobody_sends_before_ready") {
  Conversation source;
  CHECK_FALSE(source.may_send());
  CHECK(*source.received(of(ControlType::ready)) == Incoming::ready);
  REQUIRE(source.may_send());
  source.sent(ControlType::qemu_file);
  CHECK_FALSE(source.may_send());
  CHECK(source.answered());
  CHECK(*source.received(of(ControlType::ready)) == Incoming::ready);
  CHECK(contains(source.received(of(ControlType::ready)).error().text(), "READY comes twice"));
}

TEST_CASE("RdmaConversation.a_request_is_answered_before_anything_else") {
  Conversation source;
  REQUIRE(source.received(of(ControlType::ready)).has_value());
  source.sent(ControlType::register_request);
  CHECK_FALSE(source.answered());
  SECTION("by its answer") {
    CHECK(*source.received(of(ControlType::register_result)) == Incoming::answer);
    CHECK(source.answered());
    CHECK(contains(source.received(of(ControlType::register_result)).error().text(), "nobody asked for"));
  }
  SECTION("not by READY") {
    CHECK(contains(source.received(of(ControlType::ready)).error().text(),
                   "Was expecting a REGISTER RESULT (8) control message, but got: READY (2), length: 0"));
  }
  SECTION("not by another answer") {
    CHECK(contains(source.received(of(ControlType::ram_blocks_result)).error().text(), "Was expecting"));
  }
  SECTION("nor by ERROR, which is the peer's own") {
    const auto refused = source.received(of(ControlType::error));
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.error().kind() == ErrorKind::peer);
    CHECK(contains(refused.error().text(), "ERROR"));
  }
}

TEST_CASE("RdmaConversation.one_message_comes_for_one_ready") {
  Conversation destination;
  CHECK(contains(destination.received(of(ControlType::qemu_file)).error().text(), "before we were ready"));
  destination.said_ready();
  CHECK(destination.is_asking());
  CHECK(*destination.received(of(ControlType::qemu_file)) == Incoming::message);
  CHECK_FALSE(destination.is_asking());
  CHECK_FALSE(destination.received(of(ControlType::compress)).has_value());
}

TEST_CASE("RdmaConversation.qemus_return_path_is_one_message_ahead_for_good") {
  Conversation source(1);
  source.said_ready();
  // It did not wait for our READY, so that one lets the next come before we are ready again.
  CHECK(*source.received(of(ControlType::qemu_file)) == Incoming::message);
  CHECK(*source.received(of(ControlType::qemu_file)) == Incoming::message);
  CHECK_FALSE(source.received(of(ControlType::qemu_file)).has_value());
  source.said_ready();
  CHECK(*source.received(of(ControlType::qemu_file)) == Incoming::message);
  CHECK_FALSE(source.received(of(ControlType::qemu_file)).has_value());
}

TEST_CASE("RdmaChunks.the_last_chunk_of_a_block_is_shorter") {
  CHECK(chunks_of(0) == 0);
  CHECK(chunks_of(1) == 1);
  CHECK(chunks_of(chunk_bytes) == 1);
  CHECK(chunks_of(chunk_bytes + 4096) == 2);
  CHECK(chunk_of(chunk_bytes - 1) == 0);
  const std::uint64_t lengths[] = {chunk_bytes + 4096};
  const AddressSpace space(lengths);
  const auto range = space.prove_register({space.offset_of(0) + chunk_bytes, 0, 0});
  REQUIRE(range.has_value());
  CHECK(range->bytes == BlockRange{0, chunk_bytes, 4096});
  CHECK(space.prove_register({space.offset_of(0), 0, 1})->bytes == BlockRange{0, 0, chunk_bytes + 4096});
}

TEST_CASE("RdmaChunks.blocks_lie_apart_and_never_at_nothing") {
  const std::uint64_t lengths[] = {std::uint64_t{5} << 32, 4096, 0, 4096};
  const AddressSpace space(lengths);
  CHECK(space.offset_of(0) > 0);
  for (std::size_t i = 1; i < 4; ++i) CHECK(space.offset_of(i) > space.offset_of(i - 1) + lengths[i - 1]);
}

TEST_CASE("RdmaChunks.refuses_every_number_that_is_not_ours") {
  const std::uint64_t lengths[] = {3 * chunk_bytes, 0};
  const AddressSpace space(lengths);
  const std::uint64_t base = space.offset_of(0);
  const auto registering = [&](std::uint64_t where, std::uint32_t block, std::uint64_t further) {
    return space.prove_register({where, block, further}).has_value();
  };
  CHECK(registering(base, 0, 2));
  CHECK_FALSE(registering(base, 0, 3));
  CHECK_FALSE(registering(base, 0, ~std::uint64_t{0}));
  CHECK_FALSE(registering(base - 1, 0, 0));
  CHECK_FALSE(registering(0, 0, 0));
  CHECK_FALSE(registering(base + 3 * chunk_bytes, 0, 0));
  CHECK_FALSE(registering(~std::uint64_t{0}, 0, 0));
  CHECK_FALSE(registering(base, 2, 0));
  CHECK_FALSE(registering(base, ~std::uint32_t{0}, 0));
  CHECK_FALSE(registering(space.offset_of(1), 1, 0));
  CHECK(space.prove_unregister({2, 0, 0}).has_value());
  CHECK_FALSE(space.prove_unregister({3, 0, 0}).has_value());
  CHECK_FALSE(space.prove_unregister({2, 0, 1}).has_value());
  CHECK_FALSE(space.prove_unregister({0, 2, 0}).has_value());
  const auto zeros = [&](std::uint64_t where, std::uint64_t length) {
    return space.prove_compress({0, 0, where, length}, 4096).has_value();
  };
  CHECK(zeros(base, 3 * chunk_bytes));
  CHECK_FALSE(zeros(base, 3 * chunk_bytes + 4096));
  CHECK_FALSE(zeros(base + 4096, ~std::uint64_t{0} - 4095));
  CHECK_FALSE(zeros(base, 0));
  CHECK_FALSE(zeros(base + 1, 4096));
  CHECK_FALSE(zeros(base, 4095));
  CHECK_FALSE(zeros(base + 3 * chunk_bytes, 4096));
}
