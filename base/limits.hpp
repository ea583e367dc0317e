// SPDX-License-Identifier: Apache-2.0
//
// Every bound on what a peer may make us read, keep or wait for, with its reason. Nothing is allocated by a
// number from the outside that has not been compared with one of these.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

namespace migrationd::limits {

using namespace std::chrono_literals;

// --- stream ---------------------------------------------------------------------------------------------
// Names on the wire carry a u8 length.
inline constexpr std::size_t name_bytes = 255;
// Machine types are short ("pc-q35-10.0"); QEMU has no bound of its own.
inline constexpr std::size_t machine_name_bytes = 255;
// A large q35 guest lists some 20 blocks; one per hotplugged DIMM and ROM can be added.
inline constexpr std::size_t ram_blocks = 4096;
// 16 TiB: the address space QEMU's largest machine types model. memfd makes a hole, so no memory is spent.
inline constexpr std::uint64_t ram_block_bytes = std::uint64_t{1} << 44;
inline constexpr std::uint64_t ram_total_bytes = std::uint64_t{1} << 45;
// Device state of one machine; big ones (virtio-gpu, many queues) stay below 64 MiB.
inline constexpr std::size_t device_state_bytes = std::size_t{256} << 20;
// The JSON description; common guests have 80 to 100 KB.
inline constexpr std::size_t description_bytes = std::size_t{64} << 20;
inline constexpr std::size_t sections = 16384;
// The description's tree: 64 MiB of text as QEMU writes it (some 60 bytes per field) has a million nodes. QEMU's own
// nest some 40 levels of JSON; the walk recurses once per three.
inline constexpr std::size_t description_nodes = std::size_t{1} << 20;
inline constexpr std::size_t description_nesting = 512;
// Fields and array elements all walks of one stream may visit: a common guest has some 20000; about a second.
inline constexpr std::uint64_t description_walk_steps = std::uint64_t{1} << 26;
// Bytes all footer scans of one stream may look at; a scan without detours looks at each byte once. About a second.
inline constexpr std::uint64_t footer_scan_bytes = std::uint64_t{1} << 31;
// Names in the configuration's capability list; QEMU 10.0 has two that can stand there.
inline constexpr std::size_t configuration_capabilities = 64;
// A footer follows after at most this many START/PART/END/FULL of sections; return-path messages (stream.md 9.1).
inline constexpr std::size_t return_path_payload = 512;

// --- time -----------------------------------------------------------------------------------------------
// A peer that connects to the incoming port must have sent its 8-byte header by then, or it was a probe.
inline constexpr auto header_wait = 10s;
// There is no bound on silence in the middle of a stream: a source that waits in pre-switchover sends nothing for as
// long as its user likes. migrate_cancel ends the wait.
// Without a description the end is certain only when nothing more comes (stream.md 11.2).
inline constexpr auto end_quiet_time = 2s;

// --- control socket -------------------------------------------------------------------------------------
inline constexpr std::size_t qmp_document_bytes = std::size_t{1} << 20;  // QEMU: 64 MiB; nothing real needs more
inline constexpr std::size_t qmp_nesting = 1024;                         // as QEMU (qmp.md 1.2)
inline constexpr std::size_t qmp_tokens = 2097152;                       // as QEMU
inline constexpr std::size_t qmp_unread_output = std::size_t{16} << 20;  // a client that does not read is dropped
inline constexpr std::size_t qmp_clients = 64;
// A client that has not negotiated by then gives its place to another when all are taken.
inline constexpr auto qmp_negotiation_wait = 10s;
inline constexpr std::size_t qmp_queued_requests = 8;  // as QEMU with out-of-band on (qmp.md 4)
inline constexpr std::size_t fds_per_message = 16;     // as QEMU (qmp.md 7)

}  // namespace migrationd::limits
