// SPDX-License-Identifier: Apache-2.0
//
// The plan: settings and address checked against each other and frozen when a migration starts. The one place where
// contradictions are refused (file-and-channels.md section 6); the data path asks no setting afterwards.
//
// What is off stays out: a plan says what this migration does, not what capabilities exist.
#pragma once

#include "base/result.hpp"
#include "protocol/qmp/parameters.hpp"
#include "protocol/stream/multifd_packet.hpp"
#include "transports/address.hpp"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace migrationd::migration {

// A file in which every page has its place.
struct MappedPlan {
  // Page data by a second descriptor opened with O_DIRECT.
  bool direct_io = false;
  // Threads that write or read pages: as many as multifd has channels, else one.
  unsigned workers = 1;
  // The source's: off with zero-page-detection=none.
  bool detect_zeros = true;
};

// Pages over connections of their own, beside the main stream's.
struct MultifdPlan {
  unsigned channels = 2;  // 1 to 255
  stream::MultifdMethod method = stream::MultifdMethod::none;
  int level = 1;                                                        // of the method; the source's
  qmp::ZeroPageDetection zero_pages = qmp::ZeroPageDetection::multifd;  // the source's
  bool zero_copy = false;                                               // the source's
};

// Pages by one-sided writes (docs/formats/rdma.md).
struct RdmaPlan {
  bool pin_all = false;
  unsigned queue_pairs = 1;  // for pages
};

// Postcopy may be started (docs/spec/postcopy.md).
struct PostcopyPlan {
  // Instant resume: it is started before the first page.
  bool at_once = false;
  // Pages asked for go on a connection of their own.
  bool preempt = false;
  // What the destination's blocks consist of, where that is not what ours do: name and bytes, powers of two above 4096.
  std::vector<std::pair<std::string, std::uint64_t>> page_sizes;
  // The order in which pages are asked for is kept beside the file, and goes first the next time.
  bool working_set = true;
};

struct SourcePlan {
  // cpr-transfer: the memory goes by descriptor, over a socket of its own and before the stream; the stream has no
  // page.
  bool by_descriptors = false;
  // x-ignore-shared: blocks on files that have names stay there, and the stream says where the guest sees each block.
  bool ignore_shared = false;
  // Both kinds of cpr: the guest stands still before the first byte of the stream.
  bool stopped_from_start = false;
  // cpr-transfer to a process that goes on as this daemon (daemon/update): what the user has set for migrations is none
  // of its business.
  bool to_successor = false;
  std::optional<MappedPlan> mapped;
  // Ask the destination to answer. Off for one-way transports whatever the capability says: nobody could answer,
  // and QEMU hangs there in `device` (qmp.md 11).
  bool return_path = false;
  // Do not stop the guest before the destination said SWITCHOVER_ACK.
  bool switchover_ack = false;
  // Stop in pre-switchover until migrate-continue.
  bool pause_before_switchover = false;
  bool auto_converge = false;
  // Pages that change again go as deltas.
  bool xbzrle = false;
  // Leave memory nobody ever touched out of the stream (__org.migrationd_skip-holes, on at both ends).
  bool skip_holes = false;
  // Put the UUID of --uuid into the configuration section; one that a parked machine brought goes on in any case.
  bool validate_uuid = false;
  std::optional<MultifdPlan> multifd;
  std::optional<RdmaPlan> rdma;
  std::optional<PostcopyPlan> postcopy;
};

// The source may start a postcopy (docs/spec/postcopy.md).
struct PostcopyArrivalPlan {
  // Pages asked for come on a connection of their own.
  bool preempt = false;
  // Count how long the guest waits.
  bool blocktime = false;
};

struct DestinationPlan {
  // cpr-transfer: the memory came by descriptor, and no page may come.
  bool memory_is_here = false;
  // x-ignore-shared: no page comes for blocks on files that have names.
  bool ignore_shared = false;
  std::optional<MappedPlan> mapped;
  // The stream says paused, but who saved it had stopped the machine for that: it goes on.
  bool goes_on = false;
  bool switchover_ack = false;
  // The file's pages stay where they are until somebody wants them.
  bool lazy = false;
  // The file's name; empty: none (a descriptor set), or no file.
  std::string file_path;
  std::optional<PostcopyArrivalPlan> postcopy;
  std::optional<MultifdPlan> multifd;
};

// Errors: ErrorKind::plan, QEMU's texts. `cpr_channel`: one was given (outgoing), or the machine's descriptors come
// over one (incoming, where the parameter `mode` says nothing then).
Result<SourcePlan> make_source_plan(const qmp::Capabilities& capabilities, const qmp::MigrationParameters& parameters,
                                    const transports::Address& address, bool cpr_channel = false);
// What goes together with no kind of cpr. QEMU looks at it after the machine, so it is asked for apart.
Result<void> check_cpr_conflicts(const qmp::Capabilities& capabilities);
Result<DestinationPlan> make_destination_plan(const qmp::Capabilities& capabilities,
                                              const qmp::MigrationParameters& parameters,
                                              const transports::Address& address, bool cpr_channel = false);

}  // namespace migrationd::migration
