// SPDX-License-Identifier: Apache-2.0
//
// What a migrationd hands to the migrationd that replaces it, beside the machine's memory: one name on the cpr channel,
// told apart by id (docs/formats/update.md). No memory block has these ids, whatever its name is.
#pragma once

#include <cstdint>
#include <string_view>

namespace migrationd {

inline constexpr std::string_view own_descriptors = "org.migrationd";

inline constexpr std::int32_t settings_id = 256;            // a sealed memfd: daemon/update/settings.hpp
inline constexpr std::int32_t main_channel_id = 257;        // the new daemon's end of the main channel
inline constexpr std::int32_t guest_connection_id = 258;    // the guest's connection, a SEQPACKET socket
inline constexpr std::int32_t guest_registration_id = 259;  // a sealed memfd: daemon/machine/guest_record.hpp
inline constexpr std::int32_t guest_door_id = 260;          // where guests attach: a listening SEQPACKET socket
inline constexpr std::int32_t first_control_id = 512;       // control sockets, listening: one each from here on

}  // namespace migrationd
