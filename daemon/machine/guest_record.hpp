// SPDX-License-Identifier: Apache-2.0
//
// What one daemon tells the next of a guest it hands over (docs/formats/update.md).
//
// Two records. The registration is what the guest said from HELLO to READY, as the packets of the guest protocol it
// would say it with: the next daemon takes them through the same GuestRegistration as those of a guest that connects,
// so that nothing about the guest is believed that a guest would not be believed. It is made at once, in a sealed
// memfd. The standing is what changes later (state, blockers, serial), and goes as a section of the stream, when the
// old daemon has let go.
//
// The descriptors: a block's memory under its name with the id 0, its bitmap with the id 1.
//
// Thread: values. Errors: ErrorKind::wire for a record, ErrorKind::machine for a descriptor.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "daemon/machine/guest_registration.hpp"
#include "guest/protocol.hpp"
#include "protocol/cpr/cpr_state.hpp"

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace migrationd {

inline constexpr std::uint32_t registration_magic = 0x4d445247;  // "MDRG"
inline constexpr std::uint32_t standing_magic = 0x4d444753;      // "MDGS"
// 256 blocks and 4096 devices with names of 255 bytes are 1.3 MB.
inline constexpr std::size_t registration_bytes = std::size_t{2} << 20;

inline constexpr std::int32_t memory_descriptor_id = 0;
inline constexpr std::int32_t bitmap_descriptor_id = 1;
// The section that carries the standing; beside globalstate the only one.
inline constexpr std::string_view standing_section = "org.migrationd/guest";
inline constexpr std::uint32_t standing_version = 1;

Bytes encode_registration(const RegisteredGuest& guest);
// Takes what belongs to its blocks out of `descriptors`.
Result<RegisteredGuest> decode_registration(ByteView record, std::vector<cpr::NamedDescriptor>& descriptors);

struct GuestStanding {
  guest::GuestState state = guest::GuestState::paused;
  std::uint32_t last_serial = 0;  // of the last question to the guest
  std::uint32_t last_blocker = 0;
  std::vector<std::pair<std::uint32_t, std::string>> blockers;  // oldest first
};
Bytes encode_standing(const GuestStanding& standing);
Result<GuestStanding> decode_standing(ByteView record);

// Duplicates of the blocks' memory and bitmaps, the newest block first.
Result<std::vector<cpr::NamedDescriptor>> share_memory(const RegisteredGuest& guest);

}  // namespace migrationd
