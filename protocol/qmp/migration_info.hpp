// SPDX-License-Identifier: Apache-2.0
//
// What query-migrate and query-status report, and the states they name (qmp.md 8 and 11).
//
// Sizes in bytes, times in milliseconds unless a member says otherwise.
#pragma once

#include "protocol/qmp/schema.hpp"
#include "protocol/qmp/socket_address.hpp"

namespace migrationd::qmp {

enum class MigrationStatus : std::uint8_t {
  none,
  setup,
  cancelling,
  cancelled,
  active,
  postcopy_active,
  postcopy_paused,
  postcopy_recover_setup,
  postcopy_recover,
  completed,
  failed,
  colo,
  pre_switchover,
  device,
  wait_unplug
};
template <>
inline constexpr auto name_table<MigrationStatus> = names_up_to(MigrationStatus::wait_unplug, "MigrationStatus",
                                                                {"none", "setup", "cancelling", "cancelled", "active",
                                                                 "postcopy-active", "postcopy-paused",
                                                                 "postcopy-recover-setup", "postcopy-recover",
                                                                 "completed", "failed", "colo", "pre-switchover",
                                                                 "device", "wait-unplug"});

enum class RunState : std::uint8_t {
  debug,
  inmigrate,
  internal_error,
  io_error,
  paused,
  postmigrate,
  prelaunch,
  finish_migrate,
  restore_vm,
  running,
  save_vm,
  shutdown,
  suspended,
  watchdog,
  guest_panicked,
  colo
};
template <>
inline constexpr auto name_table<RunState> = names_up_to(RunState::colo, "RunState",
                                                         {"debug", "inmigrate", "internal-error", "io-error", "paused",
                                                          "postmigrate", "prelaunch", "finish-migrate", "restore-vm",
                                                          "running", "save-vm", "shutdown", "suspended", "watchdog",
                                                          "guest-panicked", "colo"});

enum class ShutdownCause : std::uint8_t {
  none,
  host_error,
  host_qmp_quit,
  host_qmp_system_reset,
  host_signal,
  host_ui,
  guest_shutdown,
  guest_reset,
  guest_panic,
  subsystem_reset,
  snapshot_load
};
template <>
inline constexpr auto name_table<ShutdownCause> = names_up_to(ShutdownCause::snapshot_load, "ShutdownCause",
                                                              {"none", "host-error", "host-qmp-quit",
                                                               "host-qmp-system-reset", "host-signal", "host-ui",
                                                               "guest-shutdown", "guest-reset", "guest-panic",
                                                               "subsystem-reset", "snapshot-load"});

struct StatusInfo {
  bool running = false;
  RunState status = RunState::prelaunch;

  static constexpr std::string_view type_name = "StatusInfo";
  static constexpr auto members() {
    return std::make_tuple(req("running", &StatusInfo::running), req("status", &StatusInfo::status));
  }
};

// All members are always sent (libvirt wants transferred, remaining and total).
struct MigrationRamStats {
  std::uint64_t transferred = 0;                  // bytes put on the wire, all channels
  std::uint64_t remaining = 0;                    // bytes still dirty; 0 when completed
  std::uint64_t total = 0;                        // bytes of all RAM blocks
  std::uint64_t duplicate = 0;                    // zero pages sent
  std::uint64_t normal = 0;                       // full pages sent
  std::uint64_t normal_bytes = 0;                 // normal x page size
  std::uint64_t dirty_pages_rate = 0;             // pages per second; 0 when completed
  double mbps = 0;                                // 10^6 bit/s of the last ~100 ms; whole run when completed
  std::uint64_t dirty_sync_count = 0;             // = pass of the last MIGRATION_PASS
  std::uint64_t postcopy_requests = 0;            // page requests from the destination
  std::uint64_t page_size = 4096;                 // bytes
  std::uint64_t multifd_bytes = 0;                // through multifd channels
  std::uint64_t pages_per_second = 0;             // same window as mbps
  std::uint64_t precopy_bytes = 0;                // RAM through the main channel before switchover
  std::uint64_t downtime_bytes = 0;               // ... during the downtime
  std::uint64_t postcopy_bytes = 0;               // ... in postcopy
  std::uint64_t dirty_sync_missed_zero_copy = 0;  // count

  static constexpr std::string_view type_name = "MigrationRAMStats";
  static constexpr auto members() {
    using S = MigrationRamStats;
    return std::make_tuple(
        req("transferred", &S::transferred, "bytes put on the wire, all channels"),
        req("remaining", &S::remaining, "bytes still to be sent"), req("total", &S::total, "bytes of all RAM blocks"),
        req("duplicate", &S::duplicate, "zero pages sent"), req("normal", &S::normal, "full pages sent"),
        req("normal-bytes", &S::normal_bytes, "bytes of full pages sent"),
        req("dirty-pages-rate", &S::dirty_pages_rate, "pages dirtied per second"),
        req("mbps", &S::mbps, "10^6 bit per second"),
        req("dirty-sync-count", &S::dirty_sync_count, "synchronisations of the dirty bitmap"),
        req("postcopy-requests", &S::postcopy_requests, "page requests from the destination"),
        req("page-size", &S::page_size, "bytes"), req("multifd-bytes", &S::multifd_bytes, "bytes"),
        req("pages-per-second", &S::pages_per_second), req("precopy-bytes", &S::precopy_bytes, "bytes"),
        req("downtime-bytes", &S::downtime_bytes, "bytes"), req("postcopy-bytes", &S::postcopy_bytes, "bytes"),
        req("dirty-sync-missed-zero-copy", &S::dirty_sync_missed_zero_copy));
  }
};

struct XbzrleCacheStats {
  std::uint64_t cache_size = 0;  // bytes
  std::uint64_t bytes = 0;
  std::uint64_t pages = 0;
  std::uint64_t cache_miss = 0;
  double cache_miss_rate = 0;
  double encoding_rate = 0;
  std::uint64_t overflow = 0;

  static constexpr std::string_view type_name = "XBZRLECacheStats";
  static constexpr auto members() {
    using S = XbzrleCacheStats;
    return std::make_tuple(req("cache-size", &S::cache_size, "bytes"), req("bytes", &S::bytes), req("pages", &S::pages),
                           req("cache-miss", &S::cache_miss), req("cache-miss-rate", &S::cache_miss_rate),
                           req("encoding-rate", &S::encoding_rate), req("overflow", &S::overflow));
  }
};

// Ours.
struct RdmaStats {
  std::uint64_t control_messages = 0;
  std::uint64_t control_bytes = 0;
  std::uint64_t writes = 0;
  std::uint64_t written_bytes = 0;
  std::uint64_t registrations = 0;
  std::uint64_t registered_bytes = 0;
  std::uint64_t completions = 0;
  std::uint64_t waits = 0;
  std::uint64_t queue_pairs = 0;

  static constexpr std::string_view type_name = "RdmaStats";
  static constexpr auto members() {
    using S = RdmaStats;
    return std::make_tuple(
        req("control-messages", &S::control_messages, "both directions"),
        req("control-bytes", &S::control_bytes, "of them: what processors copied, stream included"),
        req("writes", &S::writes, "one-sided, posted here"), req("written-bytes", &S::written_bytes),
        req("registrations", &S::registrations), req("registered-bytes", &S::registered_bytes, "sum of all"),
        req("completions", &S::completions), req("waits", &S::waits, "for a completion, with nothing else to do"),
        req("queue-pairs", &S::queue_pairs, "for pages"));
  }
};

struct VfioStats {
  std::uint64_t transferred = 0;  // bytes

  static constexpr std::string_view type_name = "VfioStats";
  static constexpr auto members() { return std::make_tuple(req("transferred", &VfioStats::transferred)); }
};

// The empty object before any migration. Which members belong to which state: qmp.md 11; the sender decides.
struct MigrationInfo {
  std::optional<MigrationStatus> status;
  std::optional<MigrationRamStats> ram;
  std::optional<VfioStats> vfio;
  std::optional<XbzrleCacheStats> xbzrle_cache;
  std::optional<std::uint64_t> total_time;         // ms
  std::optional<std::uint64_t> expected_downtime;  // ms
  std::optional<std::uint64_t> downtime;           // ms
  std::optional<std::uint64_t> setup_time;         // ms
  std::optional<std::uint64_t> cpu_throttle_percentage;
  std::optional<std::string> error_desc;
  std::optional<std::vector<std::string>> blocked_reasons;
  std::optional<std::uint64_t> postcopy_blocktime;                    // ms
  std::optional<std::vector<std::uint64_t>> postcopy_vcpu_blocktime;  // ms each
  std::optional<std::vector<std::uint64_t>> postcopy_latency_dist;    // faults per power of two of microseconds
  std::optional<std::vector<SocketAddress>> socket_address;
  std::optional<RdmaStats> rdma;
  std::optional<std::uint64_t> dirty_limit_throttle_time_per_round;  // us
  std::optional<std::uint64_t> dirty_limit_ring_full_time;           // us

  static constexpr std::string_view type_name = "MigrationInfo";
  static constexpr auto members() {
    using S = MigrationInfo;
    return std::make_tuple(opt("status", &S::status), opt("ram", &S::ram), opt("vfio", &S::vfio),
                           opt("xbzrle-cache", &S::xbzrle_cache),
                           opt("total-time", &S::total_time, "ms since the start; final once completed"),
                           opt("expected-downtime", &S::expected_downtime, "ms"), opt("downtime", &S::downtime, "ms"),
                           opt("setup-time", &S::setup_time, "ms between the command and the first pass"),
                           opt("cpu-throttle-percentage", &S::cpu_throttle_percentage, "while throttling"),
                           opt("error-desc", &S::error_desc, "the last error; may accompany any status"),
                           opt("blocked-reasons", &S::blocked_reasons, "why an outgoing migration would be refused"),
                           opt("postcopy-blocktime", &S::postcopy_blocktime, "ms"),
                           opt("postcopy-vcpu-blocktime", &S::postcopy_vcpu_blocktime, "ms per vCPU"),
                           opt("__org.migrationd_postcopy-latency-dist", &S::postcopy_latency_dist,
                               "faults that were served within [2^i, 2^(i+1)) us"),
                           opt("__org.migrationd_rdma", &S::rdma, "with rdma: what it cost"),
                           opt("socket-address", &S::socket_address, "destination: where it listens"),
                           opt("dirty-limit-throttle-time-per-round", &S::dirty_limit_throttle_time_per_round, "us"),
                           opt("dirty-limit-ring-full-time", &S::dirty_limit_ring_full_time, "us"));
  }
};

}  // namespace migrationd::qmp
