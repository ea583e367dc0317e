// SPDX-License-Identifier: Apache-2.0
//
// Types of the commands about the machine: run state, devices it does not have, objects. What libvirt asks at every
// start (qmp.md 16.3) is answered truthfully for a machine without such devices: empty lists.
#pragma once

#include "protocol/qmp/schema.hpp"

namespace migrationd::qmp {

struct NameInfo {
  std::optional<std::string> name;
  static constexpr std::string_view type_name = "NameInfo";
  static constexpr auto members() { return std::make_tuple(opt("name", &NameInfo::name)); }
};

struct UuidInfo {
  std::string uuid = "00000000-0000-0000-0000-000000000000";
  static constexpr std::string_view type_name = "UuidInfo";
  static constexpr auto members() { return std::make_tuple(req("UUID", &UuidInfo::uuid, "all zero if unset")); }
};

struct KvmInfo {
  bool enabled = false;
  bool present = false;
  static constexpr std::string_view type_name = "KvmInfo";
  static constexpr auto members() {
    return std::make_tuple(req("enabled", &KvmInfo::enabled), req("present", &KvmInfo::present));
  }
};

enum class SysEmuTarget : std::uint8_t {
  aarch64,
  alpha,
  arm,
  avr,
  hppa,
  i386,
  loongarch64,
  m68k,
  microblaze,
  microblazeel,
  mips,
  mips64,
  mips64el,
  mipsel,
  or1k,
  ppc,
  ppc64,
  riscv32,
  riscv64,
  rx,
  s390x,
  sh4,
  sh4eb,
  sparc,
  sparc64,
  tricore,
  x86_64,
  xtensa,
  xtensaeb
};
template <>
inline constexpr auto name_table<SysEmuTarget> =
    names_up_to(SysEmuTarget::xtensaeb, "SysEmuTarget",
                {"aarch64",    "alpha",        "arm",     "avr",    "hppa",     "i386",   "loongarch64", "m68k",
                 "microblaze", "microblazeel", "mips",    "mips64", "mips64el", "mipsel", "or1k",        "ppc",
                 "ppc64",      "riscv32",      "riscv64", "rx",     "s390x",    "sh4",    "sh4eb",       "sparc",
                 "sparc64",    "tricore",      "x86_64",  "xtensa", "xtensaeb"});

struct TargetInfo {
  SysEmuTarget arch = SysEmuTarget::x86_64;
  static constexpr std::string_view type_name = "TargetInfo";
  static constexpr auto members() { return std::make_tuple(req("arch", &TargetInfo::arch)); }
};

struct CurrentMachineParams {
  bool wakeup_suspend_support = false;
  static constexpr std::string_view type_name = "CurrentMachineParams";
  static constexpr auto members() {
    return std::make_tuple(req("wakeup-suspend-support", &CurrentMachineParams::wakeup_suspend_support));
  }
};

struct QueryNamedBlockNodesArgs {
  std::optional<bool> flat;
  static constexpr std::string_view type_name = "query-named-block-nodes-arg";
  static constexpr auto members() { return std::make_tuple(opt("flat", &QueryNamedBlockNodesArgs::flat)); }
};

struct BlockdevSetActiveArgs {
  std::optional<std::string> node_name;
  bool active = false;
  static constexpr std::string_view type_name = "blockdev-set-active-arg";
  static constexpr auto members() {
    return std::make_tuple(opt("node-name", &BlockdevSetActiveArgs::node_name, "default: all nodes"),
                           req("active", &BlockdevSetActiveArgs::active));
  }
};

struct ChardevInfo {
  std::string label;
  std::string filename;
  bool frontend_open = false;
  static constexpr std::string_view type_name = "ChardevInfo";
  static constexpr auto members() {
    return std::make_tuple(req("label", &ChardevInfo::label), req("filename", &ChardevInfo::filename),
                           req("frontend-open", &ChardevInfo::frontend_open));
  }
};

struct IoThreadInfo {
  std::string id;
  std::int64_t thread_id = 0;
  std::int64_t poll_max_ns = 0;
  std::int64_t poll_grow = 0;
  std::int64_t poll_shrink = 0;
  std::int64_t aio_max_batch = 0;
  static constexpr std::string_view type_name = "IOThreadInfo";
  static constexpr auto members() {
    using S = IoThreadInfo;
    return std::make_tuple(req("id", &S::id), req("thread-id", &S::thread_id), req("poll-max-ns", &S::poll_max_ns),
                           req("poll-grow", &S::poll_grow), req("poll-shrink", &S::poll_shrink),
                           req("aio-max-batch", &S::aio_max_batch));
  }
};

struct CpuInstanceProperties {
  std::optional<std::int64_t> node_id, drawer_id, book_id, socket_id, die_id, cluster_id, module_id, core_id, thread_id;
  static constexpr std::string_view type_name = "CpuInstanceProperties";
  static constexpr auto members() {
    using S = CpuInstanceProperties;
    return std::make_tuple(opt("node-id", &S::node_id), opt("drawer-id", &S::drawer_id), opt("book-id", &S::book_id),
                           opt("socket-id", &S::socket_id), opt("die-id", &S::die_id),
                           opt("cluster-id", &S::cluster_id), opt("module-id", &S::module_id),
                           opt("core-id", &S::core_id), opt("thread-id", &S::thread_id));
  }
};

struct HotpluggableCpu {
  std::string type;
  std::int64_t vcpus_count = 0;
  CpuInstanceProperties props;
  std::optional<std::string> qom_path;
  static constexpr std::string_view type_name = "HotpluggableCPU";
  static constexpr auto members() {
    using S = HotpluggableCpu;
    return std::make_tuple(req("type", &S::type), req("vcpus-count", &S::vcpus_count), req("props", &S::props),
                           opt("qom-path", &S::qom_path));
  }
};

enum class CpuS390State : std::uint8_t { uninitialized, stopped, check_stop, operating, load };
template <>
inline constexpr auto name_table<CpuS390State> =
    names_up_to(CpuS390State::load, "CpuS390State", {"uninitialized", "stopped", "check-stop", "operating", "load"});

enum class CpuS390Entitlement : std::uint8_t { automatic, low, medium, high };
template <>
inline constexpr auto name_table<CpuS390Entitlement> = names_up_to(CpuS390Entitlement::high, "CpuS390Entitlement",
                                                                   {"auto", "low", "medium", "high"});

struct CpuInfoS390 {
  CpuS390State cpu_state = CpuS390State::uninitialized;
  std::optional<bool> dedicated;
  std::optional<CpuS390Entitlement> entitlement;
  static constexpr std::string_view type_name = "CpuInfoS390";
  static constexpr auto members() {
    return std::make_tuple(req("cpu-state", &CpuInfoS390::cpu_state), opt("dedicated", &CpuInfoS390::dedicated),
                           opt("entitlement", &CpuInfoS390::entitlement));
  }
};

struct CpuInfoFast {
  std::int64_t cpu_index = 0;
  std::string qom_path;
  std::int64_t thread_id = 0;
  std::optional<CpuInstanceProperties> props;
  SysEmuTarget target = SysEmuTarget::x86_64;
  std::variant<Empty, CpuInfoS390> u;
  static constexpr std::string_view type_name = "CpuInfoFast";
  static constexpr auto members() {
    using S = CpuInfoFast;
    return std::make_tuple(req("cpu-index", &S::cpu_index), req("qom-path", &S::qom_path),
                           req("thread-id", &S::thread_id), opt("props", &S::props), req("target", &S::target));
  }
  static constexpr auto tag() { return &CpuInfoFast::target; }
  static constexpr auto branches() { return std::make_tuple(branch<CpuInfoS390>(SysEmuTarget::s390x)); }
};

struct QomPathArgs {
  std::string path;
  static constexpr std::string_view type_name = "qom-list-arg";
  static constexpr auto members() { return std::make_tuple(req("path", &QomPathArgs::path)); }
};

struct QomGetArgs {
  std::string path;
  std::string property;
  static constexpr std::string_view type_name = "qom-get-arg";
  static constexpr auto members() {
    return std::make_tuple(req("path", &QomGetArgs::path), req("property", &QomGetArgs::property));
  }
};

struct ObjectPropertyInfo {
  std::string name;
  std::string type;
  std::optional<std::string> description;
  std::optional<Any> default_value;
  static constexpr std::string_view type_name = "ObjectPropertyInfo";
  static constexpr auto members() {
    using S = ObjectPropertyInfo;
    return std::make_tuple(req("name", &S::name), req("type", &S::type), opt("description", &S::description),
                           opt("default-value", &S::default_value));
  }
};

// --- ours -----------------------------------------------------------------------------------------------

struct RamBlockInfo {
  std::string name;
  std::uint64_t size = 0;  // bytes, used length
  std::uint64_t page_size = 4096;
  std::optional<std::uint64_t> allocated;  // bytes of memory it really takes
  static constexpr std::string_view type_name = "__org.migrationd_RamBlockInfo";
  static constexpr auto members() {
    return std::make_tuple(req("name", &RamBlockInfo::name), req("size", &RamBlockInfo::size, "bytes"),
                           req("page-size", &RamBlockInfo::page_size, "bytes"),
                           opt("allocated", &RamBlockInfo::allocated, "bytes of memory it really takes"));
  }
};

struct DeviceInfo {
  std::string name;
  std::int64_t instance_id = 0;
  std::int64_t version = 0;
  std::uint64_t size = 0;  // bytes of state
  static constexpr std::string_view type_name = "__org.migrationd_DeviceInfo";
  static constexpr auto members() {
    return std::make_tuple(req("name", &DeviceInfo::name), req("instance-id", &DeviceInfo::instance_id),
                           req("version", &DeviceInfo::version), req("size", &DeviceInfo::size, "bytes of state"));
  }
};

enum class MachineOwner : std::uint8_t { here, moved, unknown, none };
template <>
inline constexpr auto name_table<MachineOwner> = names_up_to(MachineOwner::none, "__org.migrationd_MachineOwner",
                                                             {"here", "moved", "unknown", "none"});

struct MachineInfo {
  std::string kind;                         // "parked", "synthetic", "attached"
  std::optional<std::string> origin;        // where it came from, as an address
  std::optional<std::string> machine_type;  // as the stream's configuration section names it
  MachineOwner owner = MachineOwner::none;
  std::uint64_t ram_total = 0;  // bytes
  std::vector<RamBlockInfo> blocks;
  std::vector<DeviceInfo> devices;
  std::optional<std::string> dirty_log;  // how writes are noticed; absent when nothing can write
  static constexpr std::string_view type_name = "__org.migrationd_MachineInfo";
  static constexpr auto members() {
    using S = MachineInfo;
    return std::make_tuple(req("kind", &S::kind, "parked, synthetic or attached"),
                           opt("origin", &S::origin, "where it came from"), opt("machine-type", &S::machine_type),
                           req("owner", &S::owner,
                               "whose the machine is: here, moved, unknown (outcome of the hand-over "
                               "not known), none (no machine yet)"),
                           req("ram-total", &S::ram_total, "bytes"), req("blocks", &S::blocks),
                           req("devices", &S::devices),
                           opt("dirty-log", &S::dirty_log, "how the guest's writes are noticed"));
  }
};

// The daemon itself is replaced by another program, with its machine and its sockets.
struct UpdateArgs {
  std::optional<std::string> binary;
  std::optional<std::uint32_t> timeout;
  static constexpr std::string_view type_name = "__org.migrationd_UpdateArguments";
  static constexpr auto members() {
    return std::make_tuple(
        opt("binary", &UpdateArgs::binary,
            "the program to go on with; absent: what stands now where this daemon's was started from. "
            "Refused with --allow-exec=off"),
        opt("timeout", &UpdateArgs::timeout,
            "ms until the new daemon has taken over; afterwards it is ended and this one goes on "
            "(default 30000)"));
  }
};

struct UpdateInfo {
  std::int64_t pid = 0;
  std::string program;
  std::string machine;  // "none", "parked", "synthetic", "attached"
  std::uint64_t milliseconds = 0;
  static constexpr std::string_view type_name = "__org.migrationd_UpdateInfo";
  static constexpr auto members() {
    return std::make_tuple(req("pid", &UpdateInfo::pid, "of the new daemon"),
                           req("program", &UpdateInfo::program, "that was started"),
                           req("machine", &UpdateInfo::machine, "what went along: none, parked, synthetic or attached"),
                           req("milliseconds", &UpdateInfo::milliseconds, "from the command to the hand-over"));
  }
};

}  // namespace migrationd::qmp
