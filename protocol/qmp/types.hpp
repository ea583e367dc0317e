// SPDX-License-Identifier: Apache-2.0
//
// Argument and result types of the commands (names, types and optionality as QEMU 10.0's; qmp.md 7 to 9).
//
// Integers carry the width QEMU checks (qmp.md 5.3): a std::int64_t refuses what does not fit, a std::uint64_t wraps
// negative numbers, smaller ones refuse with their C type's name.
#pragma once

#include "protocol/qmp/migration_info.hpp"
#include "protocol/qmp/parameters.hpp"
#include "protocol/qmp/schema.hpp"
#include "protocol/qmp/socket_address.hpp"

namespace migrationd::qmp {

// --- the protocol itself --------------------------------------------------------------------------------

enum class QmpCapability : std::uint8_t { oob };
template <>
inline constexpr auto name_table<QmpCapability> = names_up_to(QmpCapability::oob, "QMPCapability", {"oob"});

struct QmpCapabilitiesArgs {
  std::optional<std::vector<QmpCapability>> enable;

  static constexpr std::string_view type_name = "qmp_capabilities-arg";
  static constexpr auto members() { return std::make_tuple(opt("enable", &QmpCapabilitiesArgs::enable)); }
};

struct VersionTriple {
  std::int64_t major = 0, minor = 0, micro = 0;

  static constexpr std::string_view type_name = "VersionTriple";
  static constexpr auto members() {
    return std::make_tuple(req("major", &VersionTriple::major), req("minor", &VersionTriple::minor),
                           req("micro", &VersionTriple::micro));
  }
};

struct VersionInfo {
  VersionTriple qemu;   // the QEMU whose protocol is spoken
  std::string package;  // who speaks it

  static constexpr std::string_view type_name = "VersionInfo";
  static constexpr auto members() {
    return std::make_tuple(req("qemu", &VersionInfo::qemu), req("package", &VersionInfo::package));
  }
};

struct CommandName {
  std::string name;

  static constexpr std::string_view type_name = "CommandInfo";
  static constexpr auto members() { return std::make_tuple(req("name", &CommandName::name)); }
};

struct HumanMonitorArgs {
  std::string command_line;
  std::optional<std::int64_t> cpu_index;

  static constexpr std::string_view type_name = "human-monitor-command-arg";
  static constexpr auto members() {
    return std::make_tuple(req("command-line", &HumanMonitorArgs::command_line),
                           opt("cpu-index", &HumanMonitorArgs::cpu_index, "there are no vCPUs: any is refused"));
  }
};

// --- migration ------------------------------------------------------------------------------------------

struct MigrateArgs {
  std::optional<std::string> uri;
  std::optional<std::vector<MigrationChannel>> channels;
  std::optional<bool> detach;
  std::optional<bool> resume;

  static constexpr std::string_view type_name = "migrate-arg";
  static constexpr auto members() {
    return std::make_tuple(opt("uri", &MigrateArgs::uri, "where to; this or `channels`"),
                           opt("channels", &MigrateArgs::channels, "the same, structured"),
                           opt("detach", &MigrateArgs::detach, "ignored: always detached"),
                           opt("resume", &MigrateArgs::resume, "continue a paused postcopy migration"));
  }
};

struct MigrateIncomingArgs {
  std::optional<std::string> uri;
  std::optional<std::vector<MigrationChannel>> channels;
  std::optional<bool> exit_on_error;

  static constexpr std::string_view type_name = "migrate-incoming-arg";
  static constexpr auto members() {
    return std::make_tuple(
        opt("uri", &MigrateIncomingArgs::uri, "where to listen, or what to read"),
        opt("channels", &MigrateIncomingArgs::channels, "the same, structured"),
        opt("exit-on-error", &MigrateIncomingArgs::exit_on_error, "true: a failure ends the process with status 1"));
  }
};

struct MigrateRecoverArgs {
  std::string uri;

  static constexpr std::string_view type_name = "migrate-recover-arg";
  static constexpr auto members() { return std::make_tuple(req("uri", &MigrateRecoverArgs::uri)); }
};

struct MigrateContinueArgs {
  MigrationStatus state = MigrationStatus::none;

  static constexpr std::string_view type_name = "migrate-continue-arg";
  static constexpr auto members() {
    return std::make_tuple(req("state", &MigrateContinueArgs::state, "the state it is in: pre-switchover"));
  }
};

struct SetCapabilitiesArgs {
  std::vector<MigrationCapabilityStatus> capabilities;

  static constexpr std::string_view type_name = "migrate-set-capabilities-arg";
  static constexpr auto members() { return std::make_tuple(req("capabilities", &SetCapabilitiesArgs::capabilities)); }
};

struct SetParameterArgs {
  std::string parameter;
  Any value;

  static constexpr std::string_view type_name = "migrate_set_parameter-arg";
  static constexpr auto members() {
    return std::make_tuple(req("parameter", &SetParameterArgs::parameter),
                           req("value", &SetParameterArgs::value, "the value, or a string with units"));
  }
};

struct MigrationThreadInfo {
  std::string name;
  std::int64_t thread_id = 0;

  static constexpr std::string_view type_name = "MigrationThreadInfo";
  static constexpr auto members() {
    return std::make_tuple(req("name", &MigrationThreadInfo::name), req("thread-id", &MigrationThreadInfo::thread_id));
  }
};

struct AnnounceSelfArgs {
  std::int64_t initial = 0, max = 0, rounds = 0, step = 0;
  std::optional<std::vector<std::string>> interfaces;
  std::optional<std::string> id;

  static constexpr std::string_view type_name = "announce-self-arg";
  static constexpr auto members() {
    using S = AnnounceSelfArgs;
    return std::make_tuple(req("initial", &S::initial, "ms"), req("max", &S::max, "ms"), req("rounds", &S::rounds),
                           req("step", &S::step, "ms"), opt("interfaces", &S::interfaces), opt("id", &S::id));
  }
};

// --- dirty rates ----------------------------------------------------------------------------------------

enum class TimeUnit : std::uint8_t { second, millisecond };
template <>
inline constexpr auto name_table<TimeUnit> = names_up_to(TimeUnit::millisecond, "TimeUnit", {"second", "millisecond"});

enum class DirtyRateMeasureMode : std::uint8_t { page_sampling, dirty_ring, dirty_bitmap };
template <>
inline constexpr auto name_table<DirtyRateMeasureMode> = names_up_to(DirtyRateMeasureMode::dirty_bitmap,
                                                                     "DirtyRateMeasureMode",
                                                                     {"page-sampling", "dirty-ring", "dirty-bitmap"});

enum class DirtyRateStatus : std::uint8_t { unstarted, measuring, measured };
template <>
inline constexpr auto name_table<DirtyRateStatus> = names_up_to(DirtyRateStatus::measured, "DirtyRateStatus",
                                                                {"unstarted", "measuring", "measured"});

struct CalcDirtyRateArgs {
  std::int64_t calc_time = 0;
  std::optional<TimeUnit> calc_time_unit;
  std::optional<std::int64_t> sample_pages;
  std::optional<DirtyRateMeasureMode> mode;

  static constexpr std::string_view type_name = "calc-dirty-rate-arg";
  static constexpr auto members() {
    using S = CalcDirtyRateArgs;
    return std::make_tuple(req("calc-time", &S::calc_time, "50 ms to 60 s"),
                           opt("calc-time-unit", &S::calc_time_unit, "default: second"),
                           opt("sample-pages", &S::sample_pages, "pages per GiB, 128 to 16384"), opt("mode", &S::mode));
  }
};

struct QueryDirtyRateArgs {
  std::optional<TimeUnit> calc_time_unit;

  static constexpr std::string_view type_name = "query-dirty-rate-arg";
  static constexpr auto members() {
    return std::make_tuple(opt("calc-time-unit", &QueryDirtyRateArgs::calc_time_unit));
  }
};

struct DirtyRateVcpu {
  std::int64_t id = 0;
  std::int64_t dirty_rate = 0;

  static constexpr std::string_view type_name = "DirtyRateVcpu";
  static constexpr auto members() {
    return std::make_tuple(req("id", &DirtyRateVcpu::id), req("dirty-rate", &DirtyRateVcpu::dirty_rate, "MiB/s"));
  }
};

struct DirtyRateInfo {
  std::optional<std::int64_t> dirty_rate;  // MiB/s
  DirtyRateStatus status = DirtyRateStatus::unstarted;
  std::int64_t start_time = 0;  // seconds since boot
  std::int64_t calc_time = 0;
  TimeUnit calc_time_unit = TimeUnit::second;
  std::uint64_t sample_pages = 0;
  DirtyRateMeasureMode mode = DirtyRateMeasureMode::page_sampling;
  std::optional<std::vector<DirtyRateVcpu>> vcpu_dirty_rate;

  static constexpr std::string_view type_name = "DirtyRateInfo";
  static constexpr auto members() {
    using S = DirtyRateInfo;
    return std::make_tuple(opt("dirty-rate", &S::dirty_rate, "MiB/s, once measured"), req("status", &S::status),
                           req("start-time", &S::start_time, "s"), req("calc-time", &S::calc_time),
                           req("calc-time-unit", &S::calc_time_unit), req("sample-pages", &S::sample_pages),
                           req("mode", &S::mode), opt("vcpu-dirty-rate", &S::vcpu_dirty_rate));
  }
};

struct SetVcpuDirtyLimitArgs {
  std::optional<std::int64_t> cpu_index;
  std::uint64_t dirty_rate = 0;  // MB/s

  static constexpr std::string_view type_name = "set-vcpu-dirty-limit-arg";
  static constexpr auto members() {
    return std::make_tuple(opt("cpu-index", &SetVcpuDirtyLimitArgs::cpu_index),
                           req("dirty-rate", &SetVcpuDirtyLimitArgs::dirty_rate, "MB/s"));
  }
};

struct CancelVcpuDirtyLimitArgs {
  std::optional<std::int64_t> cpu_index;

  static constexpr std::string_view type_name = "cancel-vcpu-dirty-limit-arg";
  static constexpr auto members() { return std::make_tuple(opt("cpu-index", &CancelVcpuDirtyLimitArgs::cpu_index)); }
};

struct DirtyLimitInfo {
  std::int64_t cpu_index = 0;
  std::uint64_t limit_rate = 0;
  std::uint64_t current_rate = 0;

  static constexpr std::string_view type_name = "DirtyLimitInfo";
  static constexpr auto members() {
    using S = DirtyLimitInfo;
    return std::make_tuple(req("cpu-index", &S::cpu_index), req("limit-rate", &S::limit_rate, "MB/s"),
                           req("current-rate", &S::current_rate, "MB/s"));
  }
};

// --- yank -----------------------------------------------------------------------------------------------

enum class YankInstanceType : std::uint8_t { block_node, chardev, migration };
template <>
inline constexpr auto name_table<YankInstanceType> = names_up_to(YankInstanceType::migration, "YankInstanceType",
                                                                 {"block-node", "chardev", "migration"});

struct YankBlockNode {
  std::string node_name;
  static constexpr std::string_view type_name = "YankInstanceBlockNode";
  static constexpr auto members() { return std::make_tuple(req("node-name", &YankBlockNode::node_name)); }
};

struct YankChardev {
  std::string id;
  static constexpr std::string_view type_name = "YankInstanceChardev";
  static constexpr auto members() { return std::make_tuple(req("id", &YankChardev::id)); }
};

struct YankInstance {
  YankInstanceType type = YankInstanceType::migration;
  std::variant<Empty, YankBlockNode, YankChardev> u;

  static constexpr std::string_view type_name = "YankInstance";
  static constexpr auto members() { return std::make_tuple(req("type", &YankInstance::type)); }
  static constexpr auto tag() { return &YankInstance::type; }
  static constexpr auto branches() {
    using E = YankInstanceType;
    return std::make_tuple(branch<YankBlockNode>(E::block_node), branch<YankChardev>(E::chardev));
  }
};

struct YankArgs {
  std::vector<YankInstance> instances;
  static constexpr std::string_view type_name = "yank-arg";
  static constexpr auto members() { return std::make_tuple(req("instances", &YankArgs::instances)); }
};

// --- descriptors ----------------------------------------------------------------------------------------

struct FdNameArgs {
  std::string fdname;
  static constexpr std::string_view type_name = "fdname-arg";
  static constexpr auto members() { return std::make_tuple(req("fdname", &FdNameArgs::fdname)); }
};

struct AddFdArgs {
  std::optional<std::int64_t> fdset_id;
  std::optional<std::string> opaque;

  static constexpr std::string_view type_name = "add-fd-arg";
  static constexpr auto members() {
    return std::make_tuple(opt("fdset-id", &AddFdArgs::fdset_id, "default: the lowest unused"),
                           opt("opaque", &AddFdArgs::opaque, "a note, shown by query-fdsets"));
  }
};

struct AddFdInfo {
  std::int64_t fdset_id = 0;
  std::int64_t fd = 0;

  static constexpr std::string_view type_name = "AddfdInfo";
  static constexpr auto members() {
    return std::make_tuple(req("fdset-id", &AddFdInfo::fdset_id),
                           req("fd", &AddFdInfo::fd, "number inside this process"));
  }
};

struct RemoveFdArgs {
  std::int64_t fdset_id = 0;
  std::optional<std::int64_t> fd;

  static constexpr std::string_view type_name = "remove-fd-arg";
  static constexpr auto members() {
    return std::make_tuple(req("fdset-id", &RemoveFdArgs::fdset_id), opt("fd", &RemoveFdArgs::fd, "default: all"));
  }
};

struct FdsetFdInfo {
  std::int64_t fd = 0;
  std::optional<std::string> opaque;

  static constexpr std::string_view type_name = "FdsetFdInfo";
  static constexpr auto members() {
    return std::make_tuple(req("fd", &FdsetFdInfo::fd), opt("opaque", &FdsetFdInfo::opaque));
  }
};

struct FdsetInfo {
  std::int64_t fdset_id = 0;
  std::vector<FdsetFdInfo> fds;

  static constexpr std::string_view type_name = "FdsetInfo";
  static constexpr auto members() {
    return std::make_tuple(req("fdset-id", &FdsetInfo::fdset_id), req("fds", &FdsetInfo::fds));
  }
};

}  // namespace migrationd::qmp
