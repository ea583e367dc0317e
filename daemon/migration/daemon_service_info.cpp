// SPDX-License-Identifier: Apache-2.0
//
// What the service answers: query-migrate at each stage (qmp.md 11), query-machine, threads.
#include "daemon/machine/parked.hpp"
#include "daemon/migration/daemon_service.hpp"
#include "daemon/migration/machine_worker.hpp"
#include "daemon/migration/run.hpp"

#include <unistd.h>

#include <algorithm>

namespace migrationd::migration {
namespace {

using qmp::MigrationStatus;

bool is_active_like(MigrationStatus status) noexcept {
  return status == MigrationStatus::active || status == MigrationStatus::pre_switchover ||
         status == MigrationStatus::device || status == MigrationStatus::cancelling;
}

bool is_postcopy(MigrationStatus status) noexcept {
  return status == MigrationStatus::postcopy_active || status == MigrationStatus::postcopy_paused ||
         status == MigrationStatus::postcopy_recover_setup || status == MigrationStatus::postcopy_recover;
}

qmp::MachineOwner owner_of(Ownership ownership) noexcept {
  switch (ownership) {
    case Ownership::none:
      return qmp::MachineOwner::none;
    case Ownership::ours:
      return qmp::MachineOwner::here;
    case Ownership::handed_over:
      return qmp::MachineOwner::moved;
    case Ownership::unknown:
      return qmp::MachineOwner::unknown;
  }
  return qmp::MachineOwner::none;
}

const char* kind_name(MachineKind kind) noexcept {
  switch (kind) {
    case MachineKind::parked:
      return "parked";
    case MachineKind::synthetic:
      return "synthetic";
    case MachineKind::attached:
      break;
  }
  return "attached";
}

qmp::SocketAddress to_qmp(const transports::Address& address) {
  qmp::SocketAddress out;
  if (const auto* inet = std::get_if<transports::InetAddress>(&address)) {
    out.type = qmp::SocketAddressType::inet;
    qmp::InetSocketAddress body;
    body.host = inet->host;
    body.port = inet->port;
    body.ipv4 = inet->ipv4;
    body.ipv6 = inet->ipv6;
    out.u = body;
  } else if (const auto* path = std::get_if<transports::UnixAddress>(&address)) {
    out.type = qmp::SocketAddressType::unix_path;
    qmp::UnixSocketAddress body;
    body.path = path->path;
    out.u = body;
  } else if (const auto* vsock = std::get_if<transports::VsockAddress>(&address)) {
    out.type = qmp::SocketAddressType::vsock;
    qmp::VsockSocketAddress body;
    body.cid = vsock->cid;
    body.port = vsock->port;
    out.u = body;
  }
  return out;
}

}  // namespace

qmp::MigrationRamStats DaemonService::ram_stats() const {
  const Progress& from = *progress_;
  const bool completed = lifecycle_.status() == MigrationStatus::completed;
  qmp::MigrationRamStats stats;
  const bool postcopy = is_postcopy(lifecycle_.status());
  const std::uint64_t postcopy_pages = from.postcopy.normal_pages;
  stats.transferred = from.transferred + from.postcopy.bytes;
  stats.postcopy_bytes = from.postcopy.bytes;
  stats.postcopy_requests = from.postcopy.requests;
  stats.multifd_bytes = from.multifd_bytes;
  stats.dirty_sync_missed_zero_copy = from.missed_zero_copy;
  stats.remaining = completed ? 0 : postcopy ? from.postcopy.due_bytes.load() : from.remaining.load();
  stats.total = from.ram_total;
  stats.duplicate = from.zero_pages + from.postcopy.zero_pages;
  stats.normal = from.normal_pages + postcopy_pages;
  stats.normal_bytes = stats.normal * ram::page_size;
  stats.dirty_pages_rate = completed ? 0 : from.dirty_pages_rate.load();
  stats.dirty_sync_count = from.passes;
  stats.page_size = ram::page_size;
  stats.pages_per_second = static_cast<std::uint64_t>(from.pages_per_second.load());
  stats.precopy_bytes = from.precopy_bytes;
  stats.downtime_bytes = from.downtime_bytes;
  double bytes_per_second = from.bytes_per_second;
  if (completed && from.total_ms > 0) {
    bytes_per_second = static_cast<double>(stats.transferred) * 1000 / static_cast<double>(from.total_ms);
  }
  stats.mbps = bytes_per_second * 8 / 1e6;
  return stats;
}

qmp::XbzrleCacheStats DaemonService::xbzrle_stats() const {
  const ram::XbzrleCounters& from = progress_->xbzrle;
  qmp::XbzrleCacheStats stats;
  stats.cache_size = parameters_.xbzrle_cache_size;
  stats.bytes = from.bytes.get();
  stats.pages = from.pages.get();
  stats.cache_miss = from.misses.get();
  stats.cache_miss_rate = from.miss_rate;
  stats.encoding_rate = from.encoding_rate;
  stats.overflow = from.overflows.get();
  return stats;
}

std::optional<qmp::RdmaStats> DaemonService::rdma_stats() const {
  const RdmaProgress& from = progress_->rdma;
  if (!from.used) return std::nullopt;
  qmp::RdmaStats stats;
  stats.control_messages = from.control_messages;
  stats.control_bytes = from.control_bytes;
  stats.writes = from.writes;
  stats.written_bytes = from.written_bytes;
  stats.registrations = from.registrations;
  stats.registered_bytes = from.registered_bytes;
  stats.completions = from.completions;
  stats.waits = from.waits;
  stats.queue_pairs = from.queue_pairs;
  return stats;
}

qmp::MigrationInfo DaemonService::info() const {
  qmp::MigrationInfo info;
  if (machine_) {
    // Independent of the status.
    if (auto reasons = machine_->blocked_reasons(); !reasons.empty()) info.blocked_reasons = std::move(reasons);
  }
  const MigrationStatus status = lifecycle_.status();
  if (status == MigrationStatus::none) return info;
  info.status = status;
  info.error_desc = error_text_;
  info.rdma = rdma_stats();
  if (direction_ == Direction::incoming) {
    if (!listening_.empty()) {
      std::vector<qmp::SocketAddress> addresses(listening_.size());
      std::transform(listening_.begin(), listening_.end(), addresses.begin(), to_qmp);
      info.socket_address = std::move(addresses);
    }
    if (status == MigrationStatus::completed && blocktime_) {
      info.postcopy_blocktime = blocktime_->all_ms;
      info.postcopy_vcpu_blocktime = blocktime_->vcpu_ms;
      info.postcopy_latency_dist = blocktime_->latencies;
    }
    return info;
  }
  const bool completed = status == MigrationStatus::completed;
  const bool postcopy = is_postcopy(status);
  if (!is_active_like(status) && !postcopy && !completed) return info;
  info.setup_time = static_cast<std::uint64_t>(progress_->setup_ms.load());
  info.ram = ram_stats();
  if (capabilities_.has(qmp::Capability::xbzrle)) info.xbzrle_cache = xbzrle_stats();
  if (completed) {
    info.total_time = static_cast<std::uint64_t>(progress_->total_ms.load());
    info.downtime = static_cast<std::uint64_t>((progress_->downtime_us.load() + 999) / 1000);
    return info;
  }
  info.total_time = milliseconds_since(started_);
  if (postcopy) {
    info.downtime = static_cast<std::uint64_t>((progress_->downtime_us.load() + 999) / 1000);
    return info;
  }
  const std::int64_t expected = progress_->expected_downtime_ms;
  info.expected_downtime = expected < 0 ? parameters_.downtime_limit : static_cast<std::uint64_t>(expected);
  if (const unsigned percent = progress_->throttle_percent; percent != 0) info.cpu_throttle_percentage = percent;
  return info;
}

std::vector<MigrationService::Thread> DaemonService::threads() const {
  std::vector<Thread> threads;
  // As QEMU: the source's only.
  if (direction_ != Direction::outgoing) return threads;
  for (const ThreadRoster::Entry& entry : progress_->threads.list()) threads.push_back({entry.name, entry.id});
  return threads;
}

Result<qmp::MachineInfo> DaemonService::query_machine() const {
  qmp::MachineInfo info;
  info.owner = owner_of(run_control_.ownership());
  info.kind = "none";
  if (!machine_) return info;
  info.kind = kind_name(machine_->kind());
  if (!origin_.empty()) info.origin = origin_;
  info.machine_type = machine_->configuration().machine_name;
  if (machine_->dirty_log() != nullptr) info.dirty_log = machine_->dirty_log()->kind();
  const ram::RamMap& ram = machine_->ram();
  info.ram_total = ram.total_bytes();
  for (std::size_t i = 0; i < ram.size(); ++i) {
    const ram::RamBlock& block = ram.at(i);
    auto& row = info.blocks.emplace_back();
    row.name = block.name();
    row.size = block.length();
    row.page_size = block.backing_page();
    MD_TRY(row.allocated, block.allocated_bytes());
  }
  if (const auto* parked = dynamic_cast<const ParkedMachine*>(machine_.get())) {
    for (const stream::DeviceSection& section : parked->devices().sections) {
      auto& row = info.devices.emplace_back();
      row.name = section.name;
      row.instance_id = section.instance_id;
      row.version = section.version_id;
      row.size = section.body.size();
    }
  }
  return info;
}

}  // namespace migrationd::migration
