// SPDX-License-Identifier: Apache-2.0
#include "daemon/control/channel_address.hpp"

#include <utility>

namespace migrationd::control {
namespace {

using transports::Address;

transports::InetAddress to_inet(const qmp::InetSocketAddress& from) {
  transports::InetAddress inet;
  inet.host = from.host;
  inet.port = from.port;
  inet.to = from.to;
  inet.ipv4 = from.ipv4;
  inet.ipv6 = from.ipv6;
  inet.keep_alive = from.keep_alive.value_or(false);
  inet.mptcp = from.mptcp.value_or(false);
  return inet;
}

struct ToAddress {
  qmp::QmpResult<Address> operator()(const qmp::SocketAddress& from) const { return std::visit(*this, from.u); }
  qmp::QmpResult<Address> operator()(const qmp::InetSocketAddress& from) const { return Address(to_inet(from)); }
  qmp::QmpResult<Address> operator()(const qmp::UnixSocketAddress& from) const {
    return Address(transports::UnixAddress{from.path, from.abstract.value_or(false), from.tight.value_or(true)});
  }
  qmp::QmpResult<Address> operator()(const qmp::VsockSocketAddress& from) const {
    return Address(transports::VsockAddress{from.cid, from.port});
  }
  qmp::QmpResult<Address> operator()(const qmp::FdSocketAddress& from) const {
    return Address(transports::FdAddress{from.str});
  }
  // QEMU 10.0.13 crashes on an empty list.
  qmp::QmpResult<Address> operator()(const qmp::MigrationExecCommand& from) const {
    if (from.args.empty()) return qmp::QmpError("exec: 'args' must name a program");
    return Address(transports::ExecAddress{from.args});
  }
  qmp::QmpResult<Address> operator()(const qmp::FileMigrationArgs& from) const {
    return Address(transports::FileAddress{from.filename, from.offset});
  }
};

}  // namespace

qmp::QmpResult<Address> address_of(const qmp::MigrationChannel& channel) {
  // Both socket/inet and rdma hold an InetSocketAddress; only the outer one is rdma's.
  if (const auto* rdma = std::get_if<qmp::InetSocketAddress>(&channel.addr.u)) {
    return Address(transports::RdmaAddress{to_inet(*rdma)});
  }
  return std::visit(ToAddress{}, channel.addr.u);
}

qmp::QmpResult<ChannelAddresses> channel_addresses(const std::optional<std::string>& uri,
                                                   const std::optional<std::vector<qmp::MigrationChannel>>& channels,
                                                   Direction direction) {
  const bool structured = channels && !channels->empty();
  if (uri.has_value() == structured) return qmp::QmpError("need either 'uri' or 'channels' argument");
  if (uri) {
    auto address = transports::parse_uri(*uri);
    if (!address) return qmp::QmpError(address.error());
    return ChannelAddresses{std::move(*address), std::nullopt};
  }
  if (direction == Direction::incoming && channels->size() > 1) {
    return qmp::QmpError("Channel list must have only one entry, for type 'main'");
  }
  const qmp::MigrationChannel* main = nullptr;
  const qmp::MigrationChannel* cpr = nullptr;
  for (const auto& channel : *channels) {
    auto& seen = channel.channel_type == qmp::MigrationChannelType::main ? main : cpr;
    if (seen != nullptr) {
      return qmp::QmpError("Channel list has more than one " + std::string(qmp::to_name(channel.channel_type)) +
                           " entry");
    }
    seen = &channel;
  }
  if (main == nullptr) return qmp::QmpError("Channel list has no main entry");
  MD_TRY(Address address, address_of(*main));
  ChannelAddresses addresses{std::move(address), std::nullopt};
  if (cpr != nullptr) {
    MD_TRY(addresses.cpr, address_of(*cpr));
  }
  return addresses;
}

}  // namespace migrationd::control
