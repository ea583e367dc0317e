// SPDX-License-Identifier: Apache-2.0
//
// Owners for the objects of librdmacm and libibverbs, and waiting for a connection manager's event.
//
// Every object has one owner and is destroyed in the reverse order of its making: the queue pair before its completion
// queues, those before their channel, everything before the protection domain, and the domain before the id that keeps
// the device open. Events are copied and acknowledged at once, because destroying an id (a completion queue) waits for
// the acknowledgement of its events.
//
// Only the rdma_verbs*.cpp files include this: the rest of the daemon sees transports/rdma_link.hpp.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace migrationd::transports::verbs {

template <auto destroy>
struct Destroy {
  template <class Object>
  void operator()(Object* object) const noexcept {
    destroy(object);
  }
};

using EventChannel = std::unique_ptr<rdma_event_channel, Destroy<&rdma_destroy_event_channel>>;
using CmId = std::unique_ptr<rdma_cm_id, Destroy<&rdma_destroy_id>>;
using ProtectionDomain = std::unique_ptr<ibv_pd, Destroy<&ibv_dealloc_pd>>;
using CompletionChannel = std::unique_ptr<ibv_comp_channel, Destroy<&ibv_destroy_comp_channel>>;
using CompletionQueue = std::unique_ptr<ibv_cq, Destroy<&ibv_destroy_cq>>;
using MemoryRegion = std::unique_ptr<ibv_mr, Destroy<&ibv_dereg_mr>>;
// An id's queue pair; the id outlives it.
using QueuePair = std::unique_ptr<rdma_cm_id, Destroy<&rdma_destroy_qp>>;

// What the connection manager carries for us in requests and answers; it pads them (rdma.md 3.3).
class PrivateData {
 public:
  static constexpr std::size_t max_bytes = 256;

  PrivateData() = default;
  // Cut at max_bytes; nothing that the connection manager delivers is longer.
  explicit PrivateData(std::span<const std::byte> bytes) noexcept;
  std::span<const std::byte> bytes() const noexcept { return std::span(bytes_).first(size_); }

 private:
  std::array<std::byte, max_bytes> bytes_{};
  std::size_t size_ = 0;
};

struct CmEvent {
  rdma_cm_event_type type = RDMA_CM_EVENT_ADDR_RESOLVED;
  int status = 0;              // errno (negative), or the transport's reason for a rejection
  rdma_cm_id* id = nullptr;    // of a connection request: new, and the receiver's to own
  PrivateData private_data{};  // of requests, answers and rejections
};

// "disconnected", "rejected", ...: for error texts.
std::string_view name_of(rdma_cm_event_type type) noexcept;

// A channel whose descriptor never blocks. The error says so when this kernel has no RDMA: `what` is the beginning of
// the text, as QEMU words it.
Result<EventChannel> make_event_channel(std::string_view what);

// The next event, or nothing after `limit` (0: without waiting; negative: no limit). ErrorKind::cancelled by the stop.
Result<std::optional<CmEvent>> next_event(rdma_event_channel& channel, const StopSource* stop,
                                          std::chrono::milliseconds limit);

}  // namespace migrationd::transports::verbs
