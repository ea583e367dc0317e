// SPDX-License-Identifier: Apache-2.0
//
// VerbsDomain: a protection domain, the memory registered in it, and the endpoint that keeps its device open.
//
// librdmacm closes a device with the last id that is bound to it, so the domain keeps the id it was made for: a region
// may outlive its link, and a domain the first of the links that share it.
//
// Thread: register_memory(), the destructor of a region, attach() and detach() from any.
#pragma once

#include "transports/rdma_link.hpp"
#include "transports/rdma_verbs_objects.hpp"

#include <memory>
#include <mutex>
#include <vector>

namespace migrationd::transports::verbs {

// An id with an event channel of its own. Its queue pair, if it has one, is its link's.
struct Endpoint {
  EventChannel events;
  CmId id;  // goes before its channel
};

class VerbsDomain final : public RdmaDomain, public std::enable_shared_from_this<VerbsDomain> {
 public:
  // On the device that the endpoint's id is bound to.
  static Result<std::shared_ptr<VerbsDomain>> make(std::shared_ptr<Endpoint> endpoint);

  Result<std::unique_ptr<RdmaRegion>> register_memory(std::span<std::byte> memory, RdmaAccess access) override;

  ibv_pd* get() const noexcept { return domain_.get(); }
  ibv_context* device() const noexcept { return domain_->context; }
  // A link's counters show what the domain did, from now on and before. They stay until detach().
  void attach(RdmaCounters& counters);
  void detach(RdmaCounters& counters) noexcept;
  // A region of ours is gone.
  void count_deregistration() noexcept;

 private:
  VerbsDomain(std::shared_ptr<Endpoint> endpoint, ProtectionDomain domain)
      : endpoint_(std::move(endpoint)), domain_(std::move(domain)) {}
  void count_registration(std::size_t bytes);

  std::shared_ptr<Endpoint> endpoint_;  // last to go
  ProtectionDomain domain_;
  // Registering costs a system call and the pinning of pages; one lock beside that is nothing.
  std::mutex mutex_;
  std::vector<RdmaCounters*> attached_;
  RdmaCounters total_;
};

}  // namespace migrationd::transports::verbs
