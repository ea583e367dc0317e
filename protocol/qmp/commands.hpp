// SPDX-License-Identifier: Apache-2.0
//
// The table of commands: one row per command, in the order query-commands lists them.
//
// A row is a type, so that argument and result types go with the name: a handler set that lacks an overload for a row
// does not compile (dispatch.hpp). Rows are addressed at run time by their CommandInfo.
//
//   struct Handlers {
//     QmpResult<Empty> handle(cmd::Migrate, const MigrateArgs& args);
//     QmpResult<StatusInfo> handle(cmd::QueryStatus, const Empty&);
//     ...
//   };
//   QmpResult<OrderedJson> reply = dispatch(handlers, request.command, request.arguments);
#pragma once

#include "protocol/qmp/machine_types.hpp"
#include "protocol/qmp/objects.hpp"
#include "protocol/qmp/schema_types.hpp"
#include "protocol/qmp/types.hpp"

#include <algorithm>
#include <span>

namespace migrationd::qmp {

template <std::size_t N>
struct FixedString {
  char text[N];
  constexpr FixedString(const char (&from)[N]) { std::copy_n(from, N, text); }  // NOLINT: implicit as an argument
  constexpr std::string_view view() const { return {text, N - 1}; }
};

enum class Oob : std::uint8_t { no, allowed };

// What a session needs to know of a command without its types.
struct CommandInfo {
  std::string_view name;
  bool allow_oob;
  Stability stability;
  std::string_view since;  // QEMU's version that has it, or ours ("migrationd 0.1")
  std::string_view text;   // for people: one or two sentences
  std::size_t index;       // row in AllCommands
};

template <FixedString Name, class A, class R, FixedString Since, FixedString Text, Oob oob = Oob::no,
          Stability Stable = Stability::stable>
struct Command {
  using Args = A;
  using Result = R;
  static constexpr std::string_view name = Name.view();
  static constexpr std::string_view since = Since.view();
  static constexpr std::string_view text = Text.view();
  static constexpr bool allow_oob = oob == Oob::allowed;
  static constexpr Stability stability = Stable;
};

template <class T>
using List = std::vector<T>;

namespace cmd {

// clang-format off
struct QmpCapabilities : Command<"qmp_capabilities", QmpCapabilitiesArgs, Empty, "0.13",
  "Ends the negotiation; until then nothing else is accepted."> {};
struct QueryVersion : Command<"query-version", Empty, VersionInfo, "0.14",
  "The QEMU version whose protocol is spoken, and the daemon's own in `package`."> {};
struct QueryCommands : Command<"query-commands", Empty, Prebuilt<List<CommandName>>, "0.14",
  "The names of all commands."> {};
struct QueryQmpSchema : Command<"query-qmp-schema", Empty, Prebuilt<List<SchemaInfo>>, "2.5",
  "Every command, event and type, as data."> {};
struct HumanMonitorCommand : Command<"human-monitor-command", HumanMonitorArgs, std::string, "0.14",
  "Runs a line of the human monitor's language and returns what it prints."> {};

struct Migrate : Command<"migrate", MigrateArgs, Empty, "0.14",
  "Starts a migration; the outcome is told by MIGRATION events and query-migrate."> {};
struct MigrateIncoming : Command<"migrate-incoming", MigrateIncomingArgs, Empty, "2.3",
  "Waits for, or reads, a machine; returns once it listens or has opened the file."> {};
struct MigrateCancel : Command<"migrate_cancel", Empty, Empty, "0.14",
  "Ends the outgoing migration; the machine goes on here."> {};
struct MigrateContinue : Command<"migrate-continue", MigrateContinueArgs, Empty, "2.11",
  "Lets a migration go on that waits in pre-switchover."> {};
struct MigrateStartPostcopy : Command<"migrate-start-postcopy", Empty, Empty, "2.5",
  "Switches to postcopy after the current pass."> {};
struct MigratePause : Command<"migrate-pause", Empty, Empty, "3.0",
  "Pauses a postcopy migration.", Oob::allowed> {};
struct MigrateRecover : Command<"migrate-recover", MigrateRecoverArgs, Empty, "3.0",
  "Destination of a paused postcopy migration: listens for the source to come back.", Oob::allowed> {};
struct QueryMigrate : Command<"query-migrate", Empty, MigrationInfo, "0.14",
  "State and statistics of the latest migration; {} before the first."> {};
struct QueryMigrateCapabilities : Command<"query-migrate-capabilities", Empty, List<MigrationCapabilityStatus>, "1.2",
  "Every capability and whether it is on."> {};
struct MigrateSetCapabilities : Command<"migrate-set-capabilities", SetCapabilitiesArgs, Empty, "1.2",
  "Switches capabilities; all or nothing; not during a migration."> {};
struct MigrateSetCapability : Command<"migrate_set_capability", MigrationCapabilityStatus, Empty, "migrationd 0.1",
  "Switches one capability; the human monitor's command for scripts."> {};
struct QueryMigrateParameters : Command<"query-migrate-parameters", Empty, MigrationParameters, "2.4",
  "Every parameter in force."> {};
struct MigrateSetParameters : Command<"migrate-set-parameters", ParameterPatch, Empty, "2.4",
  "Sets parameters; all or nothing; at any time."> {};
struct MigrateSetParameter : Command<"migrate_set_parameter", SetParameterArgs, Empty, "migrationd 0.1",
  "Sets one parameter; the human monitor's command for scripts."> {};
struct QueryMigrationThreads : Command<"query-migrationthreads", Empty, List<MigrationThreadInfo>, "7.2",
  "The threads of the migration that runs.", Oob::no, Stability::deprecated> {};
struct AnnounceSelf : Command<"announce-self", AnnounceSelfArgs, Empty, "4.0",
  "Asks the network cards to announce themselves; there are none here."> {};
struct CalcDirtyRate : Command<"calc-dirty-rate", CalcDirtyRateArgs, Empty, "5.2",
  "Starts to measure how fast the guest dirties memory."> {};
struct QueryDirtyRate : Command<"query-dirty-rate", QueryDirtyRateArgs, DirtyRateInfo, "5.2",
  "The result of calc-dirty-rate."> {};
struct SetVcpuDirtyLimit : Command<"set-vcpu-dirty-limit", SetVcpuDirtyLimitArgs, Empty, "7.1",
  "Limits the dirtying of vCPUs; needs KVM's dirty ring, which is not here."> {};
struct CancelVcpuDirtyLimit : Command<"cancel-vcpu-dirty-limit", CancelVcpuDirtyLimitArgs, Empty, "7.1",
  "Takes the limit of set-vcpu-dirty-limit away."> {};
struct QueryVcpuDirtyLimit : Command<"query-vcpu-dirty-limit", Empty, List<DirtyLimitInfo>, "7.1",
  "The limits of set-vcpu-dirty-limit."> {};
struct Yank : Command<"yank", YankArgs, Empty, "6.0",
  "Breaks the connections of a migration that hangs.", Oob::allowed> {};
struct QueryYank : Command<"query-yank", Empty, List<YankInstance>, "6.0",
  "What yank could break now.", Oob::allowed> {};

struct Getfd : Command<"getfd", FdNameArgs, Empty, "0.14",
  "Names the descriptor that came with the command."> {};
struct Closefd : Command<"closefd", FdNameArgs, Empty, "0.14",
  "Closes a named descriptor."> {};
struct AddFd : Command<"add-fd", AddFdArgs, AddFdInfo, "1.2",
  "Puts the descriptor that came with the command into a descriptor set."> {};
struct RemoveFd : Command<"remove-fd", RemoveFdArgs, Empty, "1.2",
  "Closes one or all descriptors of a set."> {};
struct QueryFdsets : Command<"query-fdsets", Empty, List<FdsetInfo>, "1.2",
  "The descriptor sets, highest number first."> {};

struct QueryStatus : Command<"query-status", Empty, StatusInfo, "0.14",
  "Whether the machine runs."> {};
struct Stop : Command<"stop", Empty, Empty, "0.14",
  "Stops the machine."> {};
struct Cont : Command<"cont", Empty, Empty, "0.14",
  "Lets the machine run."> {};
struct Quit : Command<"quit", Empty, Empty, "0.14",
  "Ends the daemon."> {};
struct SystemReset : Command<"system_reset", Empty, Empty, "0.14",
  "Resets the machine."> {};
struct SystemPowerdown : Command<"system_powerdown", Empty, Empty, "0.14",
  "Asks the guest to switch itself off."> {};
struct SystemWakeup : Command<"system_wakeup", Empty, Empty, "1.1",
  "Wakes a suspended guest."> {};
struct QueryName : Command<"query-name", Empty, NameInfo, "0.14",
  "The name given on the command line."> {};
struct QueryUuid : Command<"query-uuid", Empty, UuidInfo, "0.14",
  "The machine's UUID."> {};
struct QueryKvm : Command<"query-kvm", Empty, KvmInfo, "0.14",
  "Whether KVM runs the machine."> {};
struct QueryTarget : Command<"query-target", Empty, TargetInfo, "1.2",
  "The architecture of the machine."> {};
struct QueryCurrentMachine : Command<"query-current-machine", Empty, CurrentMachineParams, "4.0",
  "Properties of the machine."> {};

struct QueryBlock : Command<"query-block", Empty, NoBlockDevices, "0.14",
  "Block devices: always none."> {};
struct QueryNamedBlockNodes : Command<"query-named-block-nodes", QueryNamedBlockNodesArgs, NoBlockNodes, "2.0",
  "Block nodes: always none."> {};
struct BlockdevSetActive : Command<"blockdev-set-active", BlockdevSetActiveArgs, Empty, "10.0",
  "Activates block nodes; without a name it succeeds, for there are none."> {};
struct QueryChardev : Command<"query-chardev", Empty, List<ChardevInfo>, "0.14",
  "Character devices."> {};
struct QueryIothreads : Command<"query-iothreads", Empty, List<IoThreadInfo>, "2.0",
  "I/O threads."> {};
struct QueryHotpluggableCpus : Command<"query-hotpluggable-cpus", Empty, List<HotpluggableCpu>, "2.7",
  "vCPUs that could be plugged."> {};
struct QueryCpusFast : Command<"query-cpus-fast", Empty, List<CpuInfoFast>, "2.12",
  "vCPUs."> {};
struct QomList : Command<"qom-list", QomPathArgs, List<ObjectPropertyInfo>, "1.2",
  "Properties of an object."> {};
struct QomGet : Command<"qom-get", QomGetArgs, Any, "1.2",
  "One property of an object."> {};
struct ObjectAdd : Command<"object-add", ObjectAddArgs, Empty, "2.0",
  "Makes an object: TLS credentials, authorization, a secret."> {};
struct ObjectDel : Command<"object-del", ObjectDelArgs, Empty, "2.0",
  "Removes an object."> {};

struct VerifyMachine : Command<"__org.migrationd_verify-machine", Empty, Any, "migrationd 0.1",
  "Checks the memory pattern of a synthetic machine and says which page is wrong."> {};
struct QueryMachine : Command<"__org.migrationd_query-machine", Empty, MachineInfo, "migrationd 0.1",
  "Kind, origin, blocks and devices of the machine, and whose it is."> {};
struct Update : Command<"__org.migrationd_update", UpdateArgs, UpdateInfo, "migrationd 0.1",
  "Replaces the daemon by a new process of its program, which goes on with machine, settings and sockets."> {};
// clang-format on

}  // namespace cmd

template <class... Rows>
struct CommandTable {
  static constexpr std::size_t size = sizeof...(Rows);
};

using AllCommands = CommandTable<
    cmd::QmpCapabilities, cmd::QueryVersion, cmd::QueryCommands, cmd::QueryQmpSchema, cmd::HumanMonitorCommand,
    cmd::Migrate, cmd::MigrateIncoming, cmd::MigrateCancel, cmd::MigrateContinue, cmd::MigrateStartPostcopy,
    cmd::MigratePause, cmd::MigrateRecover, cmd::QueryMigrate, cmd::QueryMigrateCapabilities,
    cmd::MigrateSetCapabilities, cmd::MigrateSetCapability, cmd::QueryMigrateParameters, cmd::MigrateSetParameters,
    cmd::MigrateSetParameter, cmd::QueryMigrationThreads, cmd::AnnounceSelf, cmd::CalcDirtyRate, cmd::QueryDirtyRate,
    cmd::SetVcpuDirtyLimit, cmd::CancelVcpuDirtyLimit, cmd::QueryVcpuDirtyLimit, cmd::Yank, cmd::QueryYank, cmd::Getfd,
    cmd::Closefd, cmd::AddFd, cmd::RemoveFd, cmd::QueryFdsets, cmd::QueryStatus, cmd::Stop, cmd::Cont, cmd::Quit,
    cmd::SystemReset, cmd::SystemPowerdown, cmd::SystemWakeup, cmd::QueryName, cmd::QueryUuid, cmd::QueryKvm,
    cmd::QueryTarget, cmd::QueryCurrentMachine, cmd::QueryBlock, cmd::QueryNamedBlockNodes, cmd::BlockdevSetActive,
    cmd::QueryChardev, cmd::QueryIothreads, cmd::QueryHotpluggableCpus, cmd::QueryCpusFast, cmd::QomList, cmd::QomGet,
    cmd::ObjectAdd, cmd::ObjectDel, cmd::VerifyMachine, cmd::QueryMachine, cmd::Update>;

// qmp_capabilities changes the session itself, so the session machine answers it; everything else has a handler.
template <class C>
inline constexpr bool handled_by_session = std::is_same_v<C, cmd::QmpCapabilities>;

std::span<const CommandInfo> command_table();
// Null when there is none of that name (names are case-sensitive).
const CommandInfo* find_command(std::string_view name);

// The answers of query-commands and query-qmp-schema, made from the tables once (introspect.cpp).
// Thread: any; the first call builds.
const Prebuilt<std::vector<CommandName>>& query_commands();
const Prebuilt<std::vector<SchemaInfo>>& query_qmp_schema();

}  // namespace migrationd::qmp
