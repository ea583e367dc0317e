// SPDX-License-Identifier: Apache-2.0
//
// The values of --incoming: where a machine comes from (docs/man/migrationd.8).
//
// Each is one of
//   defer                             migrate-incoming will say
//   a URI, letters and a colon        the main channel
//   a MigrationChannel as JSON        the channel of its type
//   a MigrationChannel as a list      channel-type=cpr,addr.transport=socket,addr.type=unix,addr.path=P ; the first key
//   may
//                                     be left out; ',,' is a comma in a value
// In any order; a later value of a channel replaces an earlier one, and defer is the main channel's too.
//
// Thread: pure functions. Errors: ErrorKind::plan, for a person.
#pragma once

#include "base/result.hpp"
#include "transports/address.hpp"

#include <optional>
#include <span>
#include <string>

namespace migrationd {

struct IncomingWords {
  bool waits = false;                       // anything was said
  std::optional<transports::Address> main;  // nothing: defer
  std::optional<transports::Address> cpr;
};

Result<IncomingWords> parse_incoming(std::span<const std::string> words);

}  // namespace migrationd
