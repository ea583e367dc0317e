// SPDX-License-Identifier: Apache-2.0
//
// RdmaLink: one reliable-connected queue pair, as much of it as a migration needs (docs/spec/rdma.md, sections 3 and
// 7).
//
// This is the contract between who speaks the protocol (ram/, daemon/) and who drives a device (rdma_verbs). The words
// on the queue pair are not known here: a link moves messages and writes bytes, it does not look at them. Tests have an
// implementation in memory, tests/unit/rdma_memory_fabric.hpp.
//
// Life of a link
//
//     open() or RdmaListener::accept_ready()     the queue pair exists: memory can be registered, receives can be
//     posted establish()                                connects or accepts; both sides know the other's private data
//     post_*(), poll(), wait()
//     disconnect(), or the destructor
//
// rnr_retry_count is 0: a message that finds no posted receive breaks the connection. So receives are posted by who
// uses the link, before whatever lets the peer send, the first of them before establish().
//
// Several queue pairs of one migration share a domain: a registration is good for all links of its domain.
//
// Order: receives are taken first in, first out. Requests of one link are carried out in the order in which they were
// posted; a completion that was asked for says that all requests posted before on the same link are complete, too. Of
// two links nothing is said.
//
// Thread: a link has one user at a time. RdmaDomain::register_memory(), the destructor of a region, disconnect() and
// counters() may be called from any thread while the object lives. Every wait ends with the migration's stop
// (ErrorKind::cancelled).
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "transports/address.hpp"

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace migrationd::transports {

// Requests to send or write that are not known to be complete; asking for no completion does not give more room.
inline constexpr std::size_t rdma_send_depth = 512;
// Receives that may be posted at once.
inline constexpr std::size_t rdma_receive_depth = 8;
// What a connecting side may say: the communication manager's own header leaves 56 bytes.
inline constexpr std::size_t rdma_private_bytes = 56;

// What the peer may do with a region. Local reading is always allowed.
enum class RdmaAccess : std::uint8_t {
  read_local,    // we send or write from it
  write_local,   // messages are received into it
  write_remote,  // the peer writes into it (and so may we)
};

// Registered memory. The memory and its mapping stay as they are until it is destroyed, which ends the registration;
// the domain lives as long as its regions, whoever drops it first.
class RdmaRegion {
 public:
  RdmaRegion() = default;
  RdmaRegion(const RdmaRegion&) = delete;
  RdmaRegion& operator=(const RdmaRegion&) = delete;
  virtual ~RdmaRegion() = default;

  virtual std::uint32_t local_key() const noexcept = 0;
  virtual std::uint32_t remote_key() const noexcept = 0;
};

// Registered bytes of ours: wholly inside the region that the key belongs to.
struct RdmaLocal {
  std::byte* address = nullptr;
  std::uint32_t length = 0;
  std::uint32_t key = 0;  // RdmaRegion::local_key()
};

struct RdmaRemote {
  std::uint64_t address = 0;  // in the peer's process
  std::uint32_t key = 0;      // as the peer told
};

// Counted by whoever does it, read by any thread.
struct RdmaCounters {
  std::atomic<std::uint64_t> registrations{0};     // of the link's domain
  std::atomic<std::uint64_t> deregistrations{0};   // of the link's domain
  std::atomic<std::uint64_t> registered_bytes{0};  // of the link's domain: the sum over its registrations
  std::atomic<std::uint64_t> sends{0};
  std::atomic<std::uint64_t> sent_bytes{0};
  std::atomic<std::uint64_t> receives{0};  // completed
  std::atomic<std::uint64_t> received_bytes{0};
  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> written_bytes{0};
  std::atomic<std::uint64_t> completions{0};  // handed out by poll()
  std::atomic<std::uint64_t> polls{0};
  std::atomic<std::uint64_t> waits{0};  // those that slept
};

class RdmaDomain {
 public:
  RdmaDomain() = default;
  RdmaDomain(const RdmaDomain&) = delete;
  RdmaDomain& operator=(const RdmaDomain&) = delete;
  virtual ~RdmaDomain() = default;

  // Errors: ErrorKind::io with errno (ENOMEM: RLIMIT_MEMLOCK or the device's bound; the text says how many bytes).
  // Registering reads every page in: a hole is allocated.
  virtual Result<std::unique_ptr<RdmaRegion>> register_memory(std::span<std::byte> memory, RdmaAccess access) = 0;
};

enum class RdmaRequest : std::uint8_t { send, receive, write };

struct RdmaCompletion {
  RdmaRequest request = RdmaRequest::send;
  std::uint64_t id = 0;      // as given when it was posted
  std::uint32_t length = 0;  // receive: bytes that came
};

enum class RdmaWake : std::uint8_t {
  ready,         // poll() has something
  disconnected,  // the peer is gone or the device is, and nothing is left to poll
  timed_out,
};

class RdmaLink {
 public:
  RdmaLink() = default;
  RdmaLink(const RdmaLink&) = delete;
  RdmaLink& operator=(const RdmaLink&) = delete;
  // Disconnects (bounded: a second or two at most), then frees.
  virtual ~RdmaLink() = default;

  virtual std::shared_ptr<RdmaDomain> domain() const = 0;

  // Connects or accepts, with `ours` (at most rdma_private_bytes) as private data. Once.
  // Errors: QEMU's texts ("RDMA ERROR: connecting to destination!" when nobody listens or the peer rejected us),
  // ErrorKind::peer when `limit` is over.
  virtual Result<void> establish(ByteView ours, StopSource& stop, std::chrono::milliseconds limit) = 0;
  // Of an accepted link, in place of establish().
  virtual void reject() noexcept = 0;
  // What the peer said: rdma_private_bytes bytes, zeros behind what it gave. Accepting side: at once; connecting side:
  // after establish().
  virtual ByteView peer_private_data() const noexcept = 0;

  // All of `into` may be filled.
  virtual Result<void> post_receive(RdmaLocal into, std::uint64_t id) = 0;
  // The message's bytes stay as they are until the completion. Always completes with an entry of poll().
  virtual Result<void> post_send(RdmaLocal from, std::uint64_t id) = 0;
  // One-sided. `from` of length 0 is allowed (keys are not looked at then): it proves that the peer is there.
  // Without `signalled` there is a completion only if it fails. False: the queue is full; poll and try again. The
  // caller asks for a completion at least once in rdma_send_depth / 2 requests, else it may stay full for ever.
  virtual Result<bool> post_write(RdmaLocal from, RdmaRemote to, std::uint64_t id, bool signalled) = 0;

  // What has completed, never waits; the part of `out` that was filled. A request that failed is an error of
  // ErrorKind::io that names the status ("remote access error", "transport retry counter exceeded", ...), here and in
  // every later call. What a disconnect flushed, requests of all three kinds, is handed out neither as a completion nor
  // as an error: wait() says `disconnected`.
  virtual Result<std::span<RdmaCompletion>> poll(std::span<RdmaCompletion> out) = 0;
  // Until there is something to poll, the peer is gone, or `limit` is over (negative: no limit).
  virtual Result<RdmaWake> wait(StopSource& stop, std::chrono::milliseconds limit) = 0;
  // Readable when wait() would not wait; may be readable for nothing. For poll(2).
  virtual int event_fd() const noexcept = 0;

  // Ends the connection: the peer sees a disconnect, our waits too. Does not wait. Idempotent.
  virtual void disconnect() noexcept = 0;

  virtual const RdmaCounters& counters() const noexcept = 0;
  // The peer for logs: "rdma:192.168.77.1:4444". Printable.
  virtual std::string describe() const = 0;
};

class RdmaListener {
 public:
  RdmaListener() = default;
  RdmaListener(const RdmaListener&) = delete;
  RdmaListener& operator=(const RdmaListener&) = delete;
  virtual ~RdmaListener() = default;

  // Readable when accept_ready() would give a link.
  virtual int fd() const noexcept = 0;
  // Never waits; null when nobody is there. The link has its queue pair, and waits for establish() or reject() (its
  // destructor rejects). With a domain: the link shares it, which fails when the request came in on another device.
  virtual Result<std::unique_ptr<RdmaLink>> accept_ready(std::shared_ptr<RdmaDomain> domain = nullptr) = 0;
  // With the real port.
  virtual InetAddress bound_address() const = 0;
};

// Devices of one kind. Outlives what it made.
class RdmaFabric {
 public:
  RdmaFabric() = default;
  RdmaFabric(const RdmaFabric&) = delete;
  RdmaFabric& operator=(const RdmaFabric&) = delete;
  virtual ~RdmaFabric() = default;

  // Finds address and route (10 s each at most) and makes a queue pair, in `domain` when one is given.
  // Errors: QEMU's texts ("RDMA ERROR: could not resolve address H", ... docs/spec/rdma.md section 11). Thread: the
  // mover.
  virtual Result<std::unique_ptr<RdmaLink>> open(const InetAddress& to, StopSource& stop,
                                                 std::shared_ptr<RdmaDomain> domain = nullptr) = 0;
  // Thread: control. Errors: the same ("RDMA ERROR: could not create rdma event channel", "... rdma_bind_addr!").
  virtual Result<std::unique_ptr<RdmaListener>> listen(const InetAddress& at) = 0;
};

// The machine's devices through rdma-core. Fails where this build has no RDMA; whether the kernel has any is asked by
// open() and listen(). Thread: control.
Result<std::unique_ptr<RdmaFabric>> make_rdma_fabric();

}  // namespace migrationd::transports
