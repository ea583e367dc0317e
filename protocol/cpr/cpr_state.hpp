// SPDX-License-Identifier: Apache-2.0
//
// The cpr channel: the list of named descriptors that a machine takes along to another process of its host
// (docs/formats/cpr.md; the byte format of QEMU's cpr-transfer).
//
//   51 43 50 52  00 00 00 01                                          "QCPR", version 1
//   per entry: 01, u32 n, name with its NUL (n bytes), i32 id, 20     the descriptor is attached to the 20
//   00                                                                no more entries; then the sender half-closes
//
// Bytes and descriptors are two queues: on a Linux stream socket a descriptor arrives with the byte it was attached to
// or with bytes before it, however reads are cut. So the decoder keeps descriptors in order of arrival and gives the
// oldest to the entry whose carrier byte it reads. It is stricter than QEMU: a name without its NUL, one that is too
// long or comes twice (with one id), a descriptor missing or too many, a byte behind the end are errors. QEMU takes
// them and makes a machine of them that is wrong without a word.
//
// Pure: descriptors are owned and closed here, nothing else is done with them. Thread: a value, one at a time.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/unique_fd.hpp"

#include <cstddef>
#include <cstdint>
#include <deque>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace migrationd::cpr {

inline constexpr std::uint32_t magic = 0x51435052;
inline constexpr std::uint32_t version = 1;
// The byte a descriptor rides on. Readers do not look at its value.
inline constexpr std::byte carrier{0x20};
inline constexpr std::byte end_of_list{0x00};
// Without the NUL; what a RAM block's name may have in the stream.
inline constexpr std::size_t name_bytes = 255;
// A large guest has some 30 blocks and a few descriptors per device. Below the 1024 that a process may have open by
// default, so that the list cannot use up what the daemon itself needs.
inline constexpr std::size_t most_entries = 768;

struct NamedDescriptor {
  std::string name;     // 1..name_bytes bytes, no NUL
  std::int32_t id = 0;  // 0 for memory
  UniqueFd fd;
};

// What goes out in front of the first entry.
void encode_header(ByteWriter& out);
// All of an entry but its carrier byte, which is sent alone, with the descriptor. The name must suit check_name().
void encode_entry(ByteWriter& out, std::string_view name, std::int32_t id);
Result<void> check_name(std::string_view name);

class CprStateDecoder {
 public:
  // What one recvmsg brought. Errors are ErrorKind::wire (or limit), and final.
  Result<void> feed(ByteView bytes, std::vector<UniqueFd> descriptors);
  // The end of the list was read. The half-close is still to come.
  bool list_ended() const noexcept { return state_ == State::ended; }
  // Nothing came yet: whoever closes now was no old process, but a probe.
  bool untouched() const noexcept { return taken_ == 0; }
  // The peer ended its side: the entries in the order of the list, or what is missing.
  Result<std::vector<NamedDescriptor>> finish() &&;

 private:
  enum class State : std::uint8_t { magic_number, version_number, marker, name_length, name, id, descriptor, ended };

  Result<void> take_element(ByteView element);
  Result<void> take_descriptor();
  Error refused(std::string why) const;
  static const char* name_of(State state) noexcept;
  std::size_t element_bytes() const noexcept;

  State state_ = State::magic_number;
  std::uint64_t taken_ = 0;  // bytes of all feeds
  Bytes element_;            // of the element that is not whole yet
  std::size_t name_length_ = 0;
  NamedDescriptor entry_;
  std::deque<UniqueFd> waiting_;
  std::vector<NamedDescriptor> entries_;
  std::set<std::pair<std::string, std::int32_t>> names_;
};

}  // namespace migrationd::cpr
