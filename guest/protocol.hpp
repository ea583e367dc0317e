// SPDX-License-Identifier: Apache-2.0
//
// The guest protocol (docs/formats/guest-protocol.md): packets between an attached guest and its daemon, as values.
//
// One struct per message with encode() and decode() side by side. Pure: no socket, no descriptor. What arrives is
// proved here as far as it can be without knowing the state of the connection: lengths, ranges of enumerations, names,
// bounds. Descriptors travel beside a packet; how many belong to it is part of its description (fds_of).
//
// Thread: values. Errors: ErrorKind::wire, naming message and member.
#pragma once

#include "base/bytes.hpp"
#include "base/limits.hpp"
#include "base/result.hpp"

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace migrationd::guest {

inline constexpr std::uint32_t hello_magic = 0x4d444731;
inline constexpr std::uint32_t state_magic = 0x4d445354;
inline constexpr std::uint16_t protocol_version = 1;
// A packet; the largest honest one is a refusal with a long sentence.
inline constexpr std::size_t packet_bytes = std::size_t{64} << 10;
inline constexpr std::size_t packet_fds = 4;
inline constexpr std::size_t header_bytes = 8;
// A guest's block is one mapping of its address space and costs the daemon one too.
inline constexpr std::size_t guest_blocks = 256;
inline constexpr std::size_t guest_devices = 4096;
inline constexpr std::size_t guest_blockers = 64;
inline constexpr std::size_t text_bytes = 4096;     // of a sentence
inline constexpr std::uint32_t guest_vcpus = 4096;  // threads that may wait for a page

enum class Type : std::uint16_t {
  hello = 1,
  add_block,
  new_block,
  add_device,
  ready,
  add_blocker,
  delete_blocker,
  given_back,
  detach,
  stop = 32,
  start,
  throttle,
  save,
  load,
  watch,
  unwatch,
  dirty_log,
  dirty_sync,
  no_huge_pages,
  outcome,
};
inline constexpr std::uint16_t reply_bit = 0x8000;
inline constexpr std::uint16_t refusal = 0xffff;

struct Header {
  std::uint16_t type = 0;  // as on the wire, with reply_bit
  std::uint32_t serial = 0;

  bool is_reply() const noexcept { return (type & reply_bit) != 0; }
};

enum class Tracking : std::uint8_t { none, write_protect, bitmap, both };
enum class GuestState : std::uint8_t { empty, paused, running };
enum class Purpose : std::uint8_t { protect_async = 1, protect_sync, missing };
enum class Outcome : std::uint8_t { left = 1, stays, arrived };

struct Hello {
  std::uint16_t lowest = protocol_version;
  std::uint16_t highest = protocol_version;
  std::string library;
  std::string machine_name;
  std::uint32_t vcpus = 0;
  bool wants_device = false;
};
struct Welcome {
  std::uint16_t version = protocol_version;
  std::string daemon;
  std::uint32_t deadline_ms = 0;
};
struct AddBlock {
  std::string name;
  std::uint64_t address = 0;
  std::uint64_t length = 0;
  std::uint32_t page_size = 0;
  Tracking tracking = Tracking::write_protect;
};
struct NewBlock {
  std::string name;
  std::uint64_t length = 0;
  std::uint32_t page_size = 0;
};
struct AddDevice {
  std::string id;
  std::uint32_t instance = 0;
  std::uint32_t version = 0;
  std::uint32_t minimum_version = 0;
  bool unmigratable = false;
  bool early = false;
};
struct Ready {
  GuestState state = GuestState::empty;
  std::array<std::uint8_t, 16> uuid{};
};
struct AddBlocker {
  std::string reason;
};
struct BlockerNumber {  // DELETE_BLOCKER, and the reply to ADD_BLOCKER
  std::uint32_t number = 0;
};
struct GivenBack {
  std::uint32_t block = 0;
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
};
struct Throttle {
  std::uint8_t percent = 0;
};
struct StateLength {  // LOAD, and the reply to SAVE
  std::uint64_t length = 0;
};
struct Watch {
  Purpose purpose = Purpose::protect_async;
  std::uint64_t features = 0;
};
struct Unwatch {
  Purpose purpose = Purpose::protect_async;
};
struct DirtyLogSwitch {
  bool on = false;
};
struct OutcomeNotice {
  Outcome what = Outcome::left;
  std::string why;
};
struct Refusal {
  std::string why;
};
struct Empty {};  // bodies without bytes

// "ADD_BLOCK", "reply to WATCH", "refusal"; "message of unknown type" for the rest. A constant.
const char* name_of(std::uint16_t type) noexcept;
// Notices have no reply and the serial 0.
bool is_notice(std::uint16_t type) noexcept;

// The packet's header, and the bytes behind it in `in`. What it returns is of a known type, and has a serial if the
// type has one; whether it may come now, and from this side, is the connection's business.
Result<Header> decode_header(ByteReader& in);
void encode_header(const Header& header, ByteWriter& out);

// decode<Body>() takes all bytes of `body` or fails. `encode` appends. What it appends is what decode() takes, if names
// and numbers were proved before; sentences (reason, why) are made fit: cut at text_bytes, control characters and what
// is not UTF-8 replaced by '?'.
template <class Body>
Result<Body> decode(ByteView body);
template <class Body>
void encode(const Body& body, ByteWriter& out);

// A whole packet: header and body.
template <class Body>
Bytes packet(std::uint16_t type, std::uint32_t serial, const Body& body) {
  ByteWriter out;
  encode_header({type, serial}, out);
  encode(body, out);
  return std::move(out).take();
}

// Names of blocks, devices and machines: 1 to 255 bytes of printable ASCII.
bool is_name(std::string_view text) noexcept;
// Sentences: at most text_bytes of UTF-8 without control characters.
bool is_sentence(std::string_view text) noexcept;

// Descriptors that belong to a packet of this type as on the wire, at least and at most.
struct FdCount {
  std::size_t least = 0;
  std::size_t most = 0;
};
FdCount fds_of(std::uint16_t type) noexcept;
// The same for what says itself how many: the memfd, and the bitmap if the tracking has one.
std::size_t fds_of(const AddBlock& block) noexcept;

// --- state ------------------------------------------------------------------------------------------------------
struct StateSection {
  std::string id;
  std::uint32_t instance = 0;
  std::uint32_t version = 0;
  bool early = false;
  Bytes body;
  std::string description;  // JSON members without braces; empty in LOAD
};

// Of a state's memfd: all bodies, all descriptions, and what stands around them.
inline constexpr std::uint64_t state_file_bytes = 8 + limits::sections * (2 + limits::name_bytes + 4 + 4 + 1 + 4 + 4) +
                                                  limits::device_state_bytes + limits::description_bytes;

// Errors (ErrorKind::limit): a bound of decode_state() exceeded. Names are the caller's to prove.
Result<Bytes> encode_state(const std::vector<StateSection>& sections);
// Bounds: limits::sections, limits::device_state_bytes and limits::description_bytes over all sections; ids and
// descriptions are printable ASCII; no device twice.
Result<std::vector<StateSection>> decode_state(ByteView bytes);

}  // namespace migrationd::guest
