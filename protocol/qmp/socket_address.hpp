// SPDX-License-Identifier: Apache-2.0
//
// Addresses as QMP writes them: SocketAddress (query-migrate's socket-address) and MigrationAddress (`channels` of
// migrate and migrate-incoming). Flat unions: the members of the chosen kind stand beside the tag (qmp.md 9.1).
// Turning them into transports::Address is the daemon's work: protocol knows no transport.
#pragma once

#include "protocol/qmp/schema.hpp"

namespace migrationd::qmp {

struct InetSocketAddress {
  std::string host;
  std::string port;             // a string even if numeric
  std::optional<bool> numeric;  // host and port are known to be numbers
  std::optional<std::uint16_t> to;
  std::optional<bool> ipv4;
  std::optional<bool> ipv6;
  std::optional<bool> keep_alive;
  std::optional<bool> mptcp;

  static constexpr std::string_view type_name = "InetSocketAddress";
  static constexpr auto members() {
    using S = InetSocketAddress;
    return std::make_tuple(req("host", &S::host), req("port", &S::port, "number or service name"),
                           opt("numeric", &S::numeric), opt("to", &S::to, "listening: highest port to try"),
                           opt("ipv4", &S::ipv4), opt("ipv6", &S::ipv6), opt("keep-alive", &S::keep_alive),
                           opt("mptcp", &S::mptcp));
  }
};

struct UnixSocketAddress {
  std::string path;
  std::optional<bool> abstract;
  std::optional<bool> tight;

  static constexpr std::string_view type_name = "UnixSocketAddress";
  static constexpr auto members() {
    using S = UnixSocketAddress;
    return std::make_tuple(req("path", &S::path), opt("abstract", &S::abstract), opt("tight", &S::tight));
  }
};

struct VsockSocketAddress {
  std::string cid;
  std::string port;

  static constexpr std::string_view type_name = "VsockSocketAddress";
  static constexpr auto members() {
    return std::make_tuple(req("cid", &VsockSocketAddress::cid), req("port", &VsockSocketAddress::port));
  }
};

struct FdSocketAddress {
  std::string str;  // name given by getfd, or a number

  static constexpr std::string_view type_name = "FdSocketAddress";
  static constexpr auto members() { return std::make_tuple(req("str", &FdSocketAddress::str)); }
};

enum class SocketAddressType : std::uint8_t { inet, unix_path, vsock, fd };
template <>
inline constexpr auto name_table<SocketAddressType> = names_up_to(SocketAddressType::fd, "SocketAddressType",
                                                                  {"inet", "unix", "vsock", "fd"});

struct SocketAddress {
  SocketAddressType type = SocketAddressType::inet;
  std::variant<InetSocketAddress, UnixSocketAddress, VsockSocketAddress, FdSocketAddress> u;

  static constexpr std::string_view type_name = "SocketAddress";
  static constexpr auto members() { return std::make_tuple(req("type", &SocketAddress::type)); }
  static constexpr auto tag() { return &SocketAddress::type; }
  static constexpr auto branches() {
    using E = SocketAddressType;
    return std::make_tuple(branch<InetSocketAddress>(E::inet), branch<UnixSocketAddress>(E::unix_path),
                           branch<VsockSocketAddress>(E::vsock), branch<FdSocketAddress>(E::fd));
  }
};

struct MigrationExecCommand {
  std::vector<std::string> args;  // argv; no shell

  static constexpr std::string_view type_name = "MigrationExecCommand";
  static constexpr auto members() { return std::make_tuple(req("args", &MigrationExecCommand::args)); }
};

struct FileMigrationArgs {
  std::string filename;
  std::uint64_t offset = 0;  // mandatory in this form

  static constexpr std::string_view type_name = "FileMigrationArgs";
  static constexpr auto members() {
    return std::make_tuple(req("filename", &FileMigrationArgs::filename), req("offset", &FileMigrationArgs::offset));
  }
};

enum class MigrationAddressType : std::uint8_t { socket, exec, rdma, file };
template <>
inline constexpr auto name_table<MigrationAddressType> = names_up_to(MigrationAddressType::file, "MigrationAddressType",
                                                                     {"socket", "exec", "rdma", "file"});

struct MigrationAddress {
  MigrationAddressType transport = MigrationAddressType::socket;
  std::variant<SocketAddress, MigrationExecCommand, InetSocketAddress, FileMigrationArgs> u;

  static constexpr std::string_view type_name = "MigrationAddress";
  static constexpr auto members() { return std::make_tuple(req("transport", &MigrationAddress::transport)); }
  static constexpr auto tag() { return &MigrationAddress::transport; }
  static constexpr auto branches() {
    using E = MigrationAddressType;
    return std::make_tuple(branch<SocketAddress>(E::socket), branch<MigrationExecCommand>(E::exec),
                           branch<InetSocketAddress>(E::rdma), branch<FileMigrationArgs>(E::file));
  }
};

enum class MigrationChannelType : std::uint8_t { main, cpr };
template <>
inline constexpr auto name_table<MigrationChannelType> = names_up_to(MigrationChannelType::cpr, "MigrationChannelType",
                                                                     {"main", "cpr"});

struct MigrationChannel {
  MigrationChannelType channel_type = MigrationChannelType::main;
  MigrationAddress addr;

  static constexpr std::string_view type_name = "MigrationChannel";
  static constexpr auto members() {
    return std::make_tuple(req("channel-type", &MigrationChannel::channel_type), req("addr", &MigrationChannel::addr));
  }
};

}  // namespace migrationd::qmp
