// SPDX-License-Identifier: Apache-2.0
//
// The door of the destination: which of the connections is the source?
//
// An open port is probed: by scanners, by health checks, by people with telnet. QEMU takes the first connection
// for its source and ends when that was none. Here every connection is a candidate until it has sent the eight
// bytes of a migration header; the first that does is the source, the others are dropped and logged. A
// candidate that sends something else is dropped at once, one that says nothing after limits::header_wait.
// A silent candidate does not keep the source waiting: all are polled together.
//
// With multifd the source is several connections, in any order: the main stream, known by that header, and N channels,
// known by their hello (multifd.md 2.2 and 3). All must come: the channels within `channels_wait` of the main
// stream, or the migration fails. Channels without a main stream are dropped after the same time; a source that is
// still connecting then has failed, and another may come. A hello that is a hello but not one of ours (wrong UUID,
// number out of range or there already) fails the migration at once: that source would lose memory.
//
// With a preempt channel (docs/spec/postcopy.md section 10.1) there is one more connection, which says nothing and is
// known by its order only: it is the first silent one of the source. It may be there before the main stream's first
// byte, or come seconds later, so accept_source() takes it along if it is there and accept_preempt() waits for it when
// it is needed.
//
// A recovery's main stream has no header: it begins with its first command.
//
// Thread: the mover. Ends with the stop.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/stream/configuration.hpp"
#include "transports/channel.hpp"
#include "transports/listen.hpp"

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

namespace migrationd::migration {

// All of a source's connections are made before it sends its first page; what is later than a lost SYN is not coming.
inline constexpr auto channels_wait = std::chrono::seconds(10);

struct ExpectedSource {
  unsigned multifd_channels = 0;
  std::optional<stream::Uuid> uuid;  // nothing: any, but the same on all channels
  bool preempt = false;
  Bytes main_begins = {};  // how the main stream begins; empty: with the header
  // How long to wait for the main stream's connection; nothing: for ever.
  std::optional<std::chrono::milliseconds> patience = {};
  const StopSource* replaced = nullptr;  // ends the wait as the stop does; the channels live on
};

struct IncomingChannels {
  std::unique_ptr<transports::Channel> main;                  // its header is still unread
  std::vector<std::unique_ptr<transports::Channel>> multifd;  // by number; their hellos are read
  std::optional<stream::Uuid> uuid;                           // what the hellos said; not all zero
  std::unique_ptr<transports::Channel> preempt;               // if it is there yet
};

Result<IncomingChannels> accept_source(transports::Listener& listener, StopSource& stop,
                                       const ExpectedSource& expected);

// The next connection, within channels_wait. An error too when the main stream's source goes away meanwhile.
Result<std::unique_ptr<transports::Channel>> accept_preempt(transports::Listener& listener, StopSource& stop,
                                                            const transports::Channel& main);

}  // namespace migrationd::migration
