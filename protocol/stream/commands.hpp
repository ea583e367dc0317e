// SPDX-License-Identifier: Apache-2.0
//
// Commands: what the source tells the destination besides sections.
//
//   u8 08  u16 number  u16 length  payload
//
//   1 OPEN_RETURN_PATH      -
//   2 PING                  u32 value
//   3 POSTCOPY_ADVISE       u64 page sizes (or-ed), u64 target page size; or nothing (dirty-bitmaps only)
//   4 POSTCOPY_LISTEN       -
//   5 POSTCOPY_RUN          -
//   6 POSTCOPY_RAM_DISCARD  u8 0, str8 block, u8 0, { u64 start, u64 length }+
//   7 PACKAGED              u32 n; n bytes follow outside the command
//   8 ENABLE_COLO           -
//   9 POSTCOPY_RESUME       -
//  10 RECV_BITMAP           str8 block
//  11 SWITCHOVER_START      -         (QEMU 10.0; 7.2 refuses it)
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/decoded.hpp"
#include "protocol/stream/layout.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace migrationd::stream {

namespace command {
struct OpenReturnPath {
  bool operator==(const OpenReturnPath&) const = default;
};
struct Ping {
  std::uint32_t value = 0;
  bool operator==(const Ping&) const = default;
};
struct PostcopyAdvise {
  struct Sizes {
    std::uint64_t page_sizes = 0;   // bitwise or of the blocks' backing page sizes
    std::uint64_t target_page = 0;  // bytes
    bool operator==(const Sizes&) const = default;
  };
  std::optional<Sizes> sizes;  // nothing: the form of length 0
  bool operator==(const PostcopyAdvise&) const = default;
};
struct PostcopyListen {
  bool operator==(const PostcopyListen&) const = default;
};
struct PostcopyRun {
  bool operator==(const PostcopyRun&) const = default;
};
struct PostcopyRamDiscard {
  struct Range {
    std::uint64_t start = 0;   // bytes within the block
    std::uint64_t length = 0;  // bytes
    bool operator==(const Range&) const = default;
  };
  std::string block;          // not empty
  std::vector<Range> ranges;  // at least one; QEMU sends at most 12
  bool operator==(const PostcopyRamDiscard&) const = default;
};
struct Packaged {
  std::uint32_t length = 0;  // bytes that follow the command
  bool operator==(const Packaged&) const = default;
};
struct EnableColo {
  bool operator==(const EnableColo&) const = default;
};
struct PostcopyResume {
  bool operator==(const PostcopyResume&) const = default;
};
struct RecvBitmap {
  std::string block;
  bool operator==(const RecvBitmap&) const = default;
};
struct SwitchoverStart {
  bool operator==(const SwitchoverStart&) const = default;
};
}  // namespace command

using Command = std::variant<command::OpenReturnPath, command::Ping, command::PostcopyAdvise, command::PostcopyListen,
                             command::PostcopyRun, command::PostcopyRamDiscard, command::Packaged, command::EnableColo,
                             command::PostcopyResume, command::RecvBitmap, command::SwitchoverStart>;

// "PING"; for texts and logs.
std::string_view command_name(const Command& command) noexcept;

// From the 08 byte on.
Decoded<Command> decode_command(ByteView available);
void encode_command(ByteWriter& out, const Command& command);

// Ranges one RAM_DISCARD command for this block can carry.
std::size_t discard_ranges_max(std::string_view block) noexcept;

}  // namespace migrationd::stream
