// SPDX-License-Identifier: Apache-2.0
//
// The command line of migrationd. One row per option in options.cpp; --help is made from the rows, and
// docs/man/migrationd.8 describes the same ones.
//
// Errors are sentences for a person, printed before anything is started; the exit status is 2.
#pragma once

#include "base/result.hpp"
#include "daemon/control/listening_socket.hpp"
#include "daemon/guest_door.hpp"
#include "daemon/machine/parked.hpp"
#include "daemon/machine/synthetic_options.hpp"
#include "protocol/stream/configuration.hpp"
#include "transports/address.hpp"

#include <optional>
#include <string>
#include <vector>

namespace migrationd {

struct DaemonOptions {
  std::vector<control::SocketOptions> qmp;  // --qmp; may be empty under socket activation
  // --incoming was said; its main channel (nothing: defer) and its cpr channel.
  bool waits = false;
  std::optional<transports::Address> incoming;
  std::optional<transports::Address> incoming_cpr;
  // --machine; neither: parked, perhaps with blocks in files.
  MemoryFiles memory_files;
  std::optional<SyntheticOptions> synthetic;
  std::optional<AttachedOptions> attached;
  bool paused = false;  // --paused
  std::optional<std::string> name;
  std::optional<std::string> uuid_text;
  std::optional<stream::Uuid> uuid;
  std::string log_level = "info";
  bool allow_exec = true;
  std::vector<unsigned> worker_cpus;  // --worker-cpus; empty: any
  std::optional<int> take_over;       // --take-over: the cpr channel of a daemon that this one replaces
};

struct ParsedOptions {
  DaemonOptions options;
  // --help, --version or --dump-devices: print this and end with status 0.
  std::optional<std::string> print;
};

Result<ParsedOptions> parse_options(int argc, const char* const* argv);

// "unix:PATH[,mode=OCTAL][,group=NAME]". QEMU's words for a monitor socket (server, wait) are accepted: they say
// what is done anyway.
Result<control::SocketOptions> parse_qmp_socket(std::string_view text);
// "12345678-9abc-def0-1234-56789abcdef0", either case.
Result<stream::Uuid> parse_uuid(std::string_view text);

}  // namespace migrationd
