// SPDX-License-Identifier: Apache-2.0
#include "transports/rdma_verbs_domain.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

namespace migrationd::transports::verbs {

namespace {

class VerbsRegion final : public RdmaRegion {
 public:
  VerbsRegion(std::shared_ptr<VerbsDomain> domain, MemoryRegion region)
      : domain_(std::move(domain)), region_(std::move(region)) {}
  ~VerbsRegion() override {
    region_.reset();
    domain_->count_deregistration();
  }

  std::uint32_t local_key() const noexcept override { return region_->lkey; }
  std::uint32_t remote_key() const noexcept override { return region_->rkey; }

 private:
  std::shared_ptr<VerbsDomain> domain_;  // last to go
  MemoryRegion region_;
};

int access_flags(RdmaAccess access) noexcept {
  switch (access) {
    case RdmaAccess::read_local:
      break;
    case RdmaAccess::write_local:
      return IBV_ACCESS_LOCAL_WRITE;
    case RdmaAccess::write_remote:
      return IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
  }
  return 0;
}

void add(std::atomic<std::uint64_t>& counter, std::uint64_t by) noexcept {
  counter.fetch_add(by, std::memory_order_relaxed);
}

void set(std::atomic<std::uint64_t>& counter, const std::atomic<std::uint64_t>& to) noexcept {
  counter.store(to.load(std::memory_order_relaxed), std::memory_order_relaxed);
}

}  // namespace

Result<std::shared_ptr<VerbsDomain>> VerbsDomain::make(std::shared_ptr<Endpoint> endpoint) {
  if (endpoint->id->verbs == nullptr) return Error(ErrorKind::io, "RDMA ERROR: the connection has no device");
  ProtectionDomain domain(ibv_alloc_pd(endpoint->id->verbs));
  if (domain == nullptr) return Error::from_errno("RDMA ERROR: failed to allocate protection domain");
  return std::shared_ptr<VerbsDomain>(new VerbsDomain(std::move(endpoint), std::move(domain)));
}

Result<std::unique_ptr<RdmaRegion>> VerbsDomain::register_memory(std::span<std::byte> memory, RdmaAccess access) {
  const int flags = access_flags(access);
  MemoryRegion region(ibv_reg_mr(get(), memory.data(), memory.size(), flags));
  if (region == nullptr) {
    const int why = errno;
    const char* hint =
        why == ENOMEM || why == EPERM ? " (locked memory is limited: ulimit -l, or LimitMEMLOCK= of the unit)" : "";
    return Error::from_errno(fmt::format("RDMA ERROR: cannot register {} bytes of memory{}", memory.size(), hint), why);
  }
  count_registration(memory.size());
  return std::unique_ptr<RdmaRegion>(std::make_unique<VerbsRegion>(shared_from_this(), std::move(region)));
}

void VerbsDomain::attach(RdmaCounters& counters) {
  const std::lock_guard lock(mutex_);
  set(counters.registrations, total_.registrations);
  set(counters.deregistrations, total_.deregistrations);
  set(counters.registered_bytes, total_.registered_bytes);
  attached_.push_back(&counters);
}

void VerbsDomain::detach(RdmaCounters& counters) noexcept {
  const std::lock_guard lock(mutex_);
  std::erase(attached_, &counters);
}

void VerbsDomain::count_registration(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  add(total_.registrations, 1);
  add(total_.registered_bytes, bytes);
  for (RdmaCounters* counters : attached_) {
    add(counters->registrations, 1);
    add(counters->registered_bytes, bytes);
  }
}

void VerbsDomain::count_deregistration() noexcept {
  const std::lock_guard lock(mutex_);
  add(total_.deregistrations, 1);
  for (RdmaCounters* counters : attached_) add(counters->deregistrations, 1);
}

}  // namespace migrationd::transports::verbs
