// SPDX-License-Identifier: Apache-2.0
//
// The command handlers, one family per class and source file. A row of protocol/qmp/commands.hpp without an overload
// here does not compile (dispatcher.cpp).
//
// A handler gets decoded arguments, calls one member of the service or looks something up, and returns at once.
//
// Thread: control.
#pragma once

#include "daemon/control/control_state.hpp"
#include "protocol/qmp/commands.hpp"

namespace migrationd::control {

using qmp::Empty;
using qmp::QmpResult;
namespace cmd = qmp::cmd;

// What a command without a result answers.
inline QmpResult<Empty> reply(const Result<void>& result) {
  if (!result) return qmp::QmpError(result.error());
  return Empty{};
}

// What every family has: the state, by reference.
class HandlerFamily {
 public:
  explicit HandlerFamily(ControlState& state) : state_(state) {}

 protected:
  ControlState& state_;
};

// Capabilities and parameters.
class SettingsHandlers : public HandlerFamily {
 public:
  using HandlerFamily::HandlerFamily;
  QmpResult<std::vector<qmp::MigrationCapabilityStatus>> handle(cmd::QueryMigrateCapabilities, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::MigrateSetCapabilities, const qmp::SetCapabilitiesArgs& args, Request&);
  QmpResult<Empty> handle(cmd::MigrateSetCapability, const qmp::MigrationCapabilityStatus& args, Request&);
  QmpResult<qmp::MigrationParameters> handle(cmd::QueryMigrateParameters, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::MigrateSetParameters, const qmp::ParameterPatch& args, Request&);
  QmpResult<Empty> handle(cmd::MigrateSetParameter, const qmp::SetParameterArgs& args, Request&);

 private:
  QmpResult<Empty> set_capabilities(std::span<const qmp::MigrationCapabilityStatus> changes);
};

// Starting, steering and watching migrations.
class MigrateHandlers : public HandlerFamily {
 public:
  using HandlerFamily::HandlerFamily;
  QmpResult<Empty> handle(cmd::Migrate, const qmp::MigrateArgs& args, Request& request);
  QmpResult<Empty> handle(cmd::MigrateIncoming, const qmp::MigrateIncomingArgs& args, Request& request);
  QmpResult<Empty> handle(cmd::MigrateCancel, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::MigrateContinue, const qmp::MigrateContinueArgs& args, Request&);
  QmpResult<Empty> handle(cmd::MigrateStartPostcopy, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::MigratePause, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::MigrateRecover, const qmp::MigrateRecoverArgs& args, Request& request);
  QmpResult<qmp::MigrationInfo> handle(cmd::QueryMigrate, const Empty&, Request&);
  QmpResult<std::vector<qmp::MigrationThreadInfo>> handle(cmd::QueryMigrationThreads, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::Yank, const qmp::YankArgs& args, Request&);
  QmpResult<std::vector<qmp::YankInstance>> handle(cmd::QueryYank, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::CalcDirtyRate, const qmp::CalcDirtyRateArgs& args, Request&);
  QmpResult<qmp::DirtyRateInfo> handle(cmd::QueryDirtyRate, const qmp::QueryDirtyRateArgs& args, Request&);
};

// Descriptors that came with the command.
class FdHandlers : public HandlerFamily {
 public:
  using HandlerFamily::HandlerFamily;
  QmpResult<Empty> handle(cmd::Getfd, const qmp::FdNameArgs& args, Request& request);
  QmpResult<Empty> handle(cmd::Closefd, const qmp::FdNameArgs& args, Request& request);
  QmpResult<qmp::AddFdInfo> handle(cmd::AddFd, const qmp::AddFdArgs& args, Request& request);
  QmpResult<Empty> handle(cmd::RemoveFd, const qmp::RemoveFdArgs& args, Request& request);
  QmpResult<std::vector<qmp::FdsetInfo>> handle(cmd::QueryFdsets, const Empty&, Request& request);
};

// Does the machine run, and the end of the daemon.
class RunStateHandlers : public HandlerFamily {
 public:
  using HandlerFamily::HandlerFamily;
  QmpResult<qmp::StatusInfo> handle(cmd::QueryStatus, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::Stop, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::Cont, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::Quit, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::SystemReset, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::SystemPowerdown, const Empty&, Request&);
  QmpResult<Empty> handle(cmd::SystemWakeup, const Empty&, Request&);
};

// The daemon, its protocol, and the machine in its own words.
class IdentityHandlers : public HandlerFamily {
 public:
  using HandlerFamily::HandlerFamily;
  QmpResult<qmp::VersionInfo> handle(cmd::QueryVersion, const Empty&, Request&);
  QmpResult<qmp::Prebuilt<std::vector<qmp::CommandName>>> handle(cmd::QueryCommands, const Empty&, Request&);
  QmpResult<qmp::Prebuilt<std::vector<qmp::SchemaInfo>>> handle(cmd::QueryQmpSchema, const Empty&, Request&);
  QmpResult<qmp::NameInfo> handle(cmd::QueryName, const Empty&, Request&);
  QmpResult<qmp::UuidInfo> handle(cmd::QueryUuid, const Empty&, Request&);
  QmpResult<qmp::KvmInfo> handle(cmd::QueryKvm, const Empty&, Request&);
  QmpResult<qmp::TargetInfo> handle(cmd::QueryTarget, const Empty&, Request&);
  QmpResult<qmp::CurrentMachineParams> handle(cmd::QueryCurrentMachine, const Empty&, Request&);
  QmpResult<qmp::MachineInfo> handle(cmd::QueryMachine, const Empty&, Request&);
};

// Devices and objects: a machine in migrationd's hands has none, and libvirt asks for all of them.
class DeviceHandlers : public HandlerFamily {
 public:
  using HandlerFamily::HandlerFamily;
  QmpResult<qmp::NoBlockDevices> handle(cmd::QueryBlock, const Empty&, Request&);
  QmpResult<qmp::NoBlockNodes> handle(cmd::QueryNamedBlockNodes, const qmp::QueryNamedBlockNodesArgs&, Request&);
  QmpResult<Empty> handle(cmd::BlockdevSetActive, const qmp::BlockdevSetActiveArgs& args, Request&);
  QmpResult<std::vector<qmp::ChardevInfo>> handle(cmd::QueryChardev, const Empty&, Request&);
  QmpResult<std::vector<qmp::IoThreadInfo>> handle(cmd::QueryIothreads, const Empty&, Request&);
  QmpResult<std::vector<qmp::HotpluggableCpu>> handle(cmd::QueryHotpluggableCpus, const Empty&, Request&);
  QmpResult<std::vector<qmp::CpuInfoFast>> handle(cmd::QueryCpusFast, const Empty&, Request&);
  QmpResult<std::vector<qmp::ObjectPropertyInfo>> handle(cmd::QomList, const qmp::QomPathArgs& args, Request&);
  QmpResult<qmp::Any> handle(cmd::QomGet, const qmp::QomGetArgs& args, Request&);
  QmpResult<Empty> handle(cmd::ObjectAdd, const qmp::ObjectAddArgs& args, Request&);
  QmpResult<Empty> handle(cmd::ObjectDel, const qmp::ObjectDelArgs& args, Request&);
  QmpResult<Empty> handle(cmd::AnnounceSelf, const qmp::AnnounceSelfArgs&, Request&);
  QmpResult<Empty> handle(cmd::SetVcpuDirtyLimit, const qmp::SetVcpuDirtyLimitArgs&, Request&);
  QmpResult<Empty> handle(cmd::CancelVcpuDirtyLimit, const qmp::CancelVcpuDirtyLimitArgs&, Request&);
  QmpResult<std::vector<qmp::DirtyLimitInfo>> handle(cmd::QueryVcpuDirtyLimit, const Empty&, Request&);
};

}  // namespace migrationd::control
