// SPDX-License-Identifier: Apache-2.0
//
// From the arguments of migrate and migrate-incoming to addresses, with QEMU 10.0's checks in its order
// (qmp.md 9.1, file-and-channels.md 5.2).
//
// Thread: pure functions.
#pragma once

#include "protocol/qmp/error.hpp"
#include "protocol/qmp/socket_address.hpp"
#include "transports/address.hpp"

#include <optional>
#include <string>
#include <vector>

namespace migrationd::control {

enum class Direction { outgoing, incoming };

struct ChannelAddresses {
  transports::Address main;
  std::optional<transports::Address> cpr;
};

// Either a uri or channels, not both; an empty list counts as none.
qmp::QmpResult<ChannelAddresses> channel_addresses(const std::optional<std::string>& uri,
                                                   const std::optional<std::vector<qmp::MigrationChannel>>& channels,
                                                   Direction direction);
// Of one channel, whatever its type.
qmp::QmpResult<transports::Address> address_of(const qmp::MigrationChannel& channel);

}  // namespace migrationd::control
