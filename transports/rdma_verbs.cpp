// SPDX-License-Identifier: Apache-2.0
//
// From addresses to links: the connection manager's side of transports/rdma_link.hpp.
//
// A connecting side resolves the name itself (so that a stop can leave it), then lets the connection manager find the
// device that leads there and the route; each address of the name is tried. A listening side binds the first address
// that a device has, and gives each request an event channel of its own as soon as it is there: the listener and the
// links are then used by different threads.
//
// IPv6 is not refused as QEMU refuses it: the kernels that could not do it over Ethernet are gone. Where it cannot be
// done the connection manager says so.
#include "transports/rdma_verbs_link.hpp"
#include "transports/socket_address.hpp"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>

#include <cstring>

namespace migrationd::transports {

namespace verbs {

namespace {

using std::chrono::milliseconds;

constexpr milliseconds resolve_limit{10000};  // docs/spec/rdma.md 3.1
constexpr int listen_backlog = 16;            // QEMU's is 5; several queue pairs come at once

// 4.096 us * 2^18, about a second, before a packet that was not acknowledged is sent again. The connection manager's
// own choice over Ethernet is four; times six tries, a peer whose host is gone would be noticed after half a minute.
constexpr std::uint8_t ack_timeout = 18;

Error cm_error(std::string_view what) { return Error::from_errno(fmt::format("RDMA ERROR: {}", what)); }

// The event that the last step was for. `what` begins the text when it is another.
Result<void> expect(Endpoint& endpoint, rdma_cm_event_type wanted, StopSource& stop, std::string_view what) {
  MD_TRY(const std::optional<CmEvent> event, next_event(*endpoint.events, &stop, resolve_limit));
  if (!event) return Error(ErrorKind::io, fmt::format("RDMA ERROR: {}: no answer within 10 s", what));
  if (event->type == wanted) return {};
  if (event->status < 0) return Error::from_errno(fmt::format("RDMA ERROR: {}", what), -event->status);
  return Error(ErrorKind::io, fmt::format("RDMA ERROR: {}: {}", what, name_of(event->type)));
}

// Not every device lets itself be told; then it keeps its own.
void set_ack_timeout(rdma_cm_id* id) noexcept {
  std::uint8_t timeout = ack_timeout;
  rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT, &timeout, sizeof timeout);
}

Result<std::shared_ptr<Endpoint>> new_endpoint(std::string_view what) {
  auto endpoint = std::make_shared<Endpoint>();
  MD_TRY(endpoint->events, make_event_channel(what));
  rdma_cm_id* id = nullptr;
  if (rdma_create_id(endpoint->events.get(), &id, nullptr, RDMA_PS_TCP) != 0)
    return cm_error("could not create channel id");
  endpoint->id.reset(id);
  return endpoint;
}

Result<std::shared_ptr<Endpoint>> resolved(const SocketAddress& to, const std::string& host, StopSource& stop) {
  MD_TRY(auto endpoint, new_endpoint("RDMA ERROR: could not create CM channel"));
  set_ack_timeout(endpoint->id.get());
  const std::string no_address = fmt::format("could not resolve address {}", printable(host, printable_address_bytes));
  SocketAddress address = to;  // librdmacm takes it writable
  auto* where = reinterpret_cast<sockaddr*>(&address.storage);
  const auto limit = static_cast<int>(resolve_limit.count());
  if (rdma_resolve_addr(endpoint->id.get(), nullptr, where, limit) != 0) return cm_error(no_address);
  MD_CHECK(expect(*endpoint, RDMA_CM_EVENT_ADDR_RESOLVED, stop, no_address));
  if (rdma_resolve_route(endpoint->id.get(), limit) != 0) return cm_error("could not resolve rdma route");
  MD_CHECK(expect(*endpoint, RDMA_CM_EVENT_ROUTE_RESOLVED, stop, "could not resolve rdma route"));
  return endpoint;
}

std::string host_of(const sockaddr* address) {
  char text[INET6_ADDRSTRLEN] = "";
  if (address->sa_family == AF_INET6) {
    sockaddr_in6 v6{};
    std::memcpy(&v6, address, sizeof v6);
    ::inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof text);
  } else {
    sockaddr_in v4{};
    std::memcpy(&v4, address, sizeof v4);
    ::inet_ntop(AF_INET, &v4.sin_addr, text, sizeof text);
  }
  return text;
}

std::string described(const std::string& host, const std::string& port) {
  return to_string(Address(RdmaAddress{InetAddress{.host = host, .port = port}}));
}

std::string described_peer(rdma_cm_id& id) {
  return described(host_of(rdma_get_peer_addr(&id)), std::to_string(ntohs(rdma_get_dst_port(&id))));
}

class VerbsListener final : public RdmaListener {
 public:
  explicit VerbsListener(std::shared_ptr<Endpoint> endpoint) : endpoint_(std::move(endpoint)) {}

  int fd() const noexcept override { return endpoint_->events->fd; }
  Result<std::unique_ptr<RdmaLink>> accept_ready(std::shared_ptr<RdmaDomain> domain) override;
  InetAddress bound_address() const override;

 private:
  Result<std::unique_ptr<RdmaLink>> take_request(rdma_cm_id* id, const PrivateData& asked,
                                                 std::shared_ptr<RdmaDomain> domain);

  std::shared_ptr<Endpoint> endpoint_;
};

Result<std::unique_ptr<RdmaLink>> VerbsListener::accept_ready(std::shared_ptr<RdmaDomain> domain) {
  while (true) {
    MD_TRY(const std::optional<CmEvent> event, next_event(*endpoint_->events, nullptr, milliseconds(0)));
    if (!event) return std::unique_ptr<RdmaLink>();
    if (event->type == RDMA_CM_EVENT_CONNECT_REQUEST)
      return take_request(event->id, event->private_data, std::move(domain));
    if (event->type == RDMA_CM_EVENT_DEVICE_REMOVAL)
      return Error(ErrorKind::io, "RDMA ERROR: the RDMA device was removed");
  }
}

Result<std::unique_ptr<RdmaLink>> VerbsListener::take_request(rdma_cm_id* id, const PrivateData& asked,
                                                              std::shared_ptr<RdmaDomain> domain) {
  auto endpoint = std::make_shared<Endpoint>();
  endpoint->id.reset(id);
  MD_TRY(endpoint->events, make_event_channel("RDMA ERROR: could not create rdma event channel"));
  if (rdma_migrate_id(id, endpoint->events.get()) != 0) return cm_error("could not take over the request");
  set_ack_timeout(id);
  std::string peer = described_peer(*id);
  MD_TRY(std::unique_ptr<VerbsLink> link,
         VerbsLink::make(std::move(endpoint), VerbsLink::Side::accepts, std::move(peer), asked, std::move(domain)));
  return std::unique_ptr<RdmaLink>(std::move(link));
}

InetAddress VerbsListener::bound_address() const {
  rdma_cm_id* id = endpoint_->id.get();
  const sockaddr* local = rdma_get_local_addr(id);
  InetAddress out{.host = host_of(local), .port = std::to_string(ntohs(rdma_get_src_port(id)))};
  (local->sa_family == AF_INET6 ? out.ipv6 : out.ipv4) = true;
  return out;
}

class VerbsFabric final : public RdmaFabric {
 public:
  Result<std::unique_ptr<RdmaLink>> open(const InetAddress& to, StopSource& stop,
                                         std::shared_ptr<RdmaDomain> domain) override;
  Result<std::unique_ptr<RdmaListener>> listen(const InetAddress& at) override;
};

Result<std::unique_ptr<RdmaLink>> VerbsFabric::open(const InetAddress& to, StopSource& stop,
                                                    std::shared_ptr<RdmaDomain> domain) {
  MD_TRY(const std::vector<SocketAddress> addresses, resolve(to, {.stop = &stop}));
  std::optional<Error> first;
  for (const SocketAddress& address : addresses) {
    auto endpoint = resolved(address, to.host, stop);
    if (endpoint.has_value()) {
      MD_TRY(std::unique_ptr<VerbsLink> link, VerbsLink::make(std::move(*endpoint), VerbsLink::Side::connects,
                                                              described(to.host, to.port), {}, std::move(domain)));
      return std::unique_ptr<RdmaLink>(std::move(link));
    }
    if (endpoint.error().is_cancelled()) return endpoint.error();
    if (!first) first = endpoint.error();
  }
  return *first;
}

Result<std::shared_ptr<Endpoint>> bound(const SocketAddress& at) {
  MD_TRY(auto endpoint, new_endpoint("RDMA ERROR: could not create rdma event channel"));
  rdma_cm_id* id = endpoint->id.get();
  // A port is free again when its listener is gone, whatever becomes of the connections that came by it.
  int reuse = 1;
  if (rdma_set_option(id, RDMA_OPTION_ID, RDMA_OPTION_ID_REUSEADDR, &reuse, sizeof reuse) != 0)
    return cm_error("could not set REUSEADDR option");
  SocketAddress address = at;
  if (rdma_bind_addr(id, reinterpret_cast<sockaddr*>(&address.storage)) != 0)
    return cm_error("Error: could not rdma_bind_addr!");
  if (rdma_listen(id, listen_backlog) != 0) return cm_error("could not listen on socket!");
  return endpoint;
}

Result<std::unique_ptr<RdmaListener>> VerbsFabric::listen(const InetAddress& at) {
  MD_TRY(const std::vector<SocketAddress> addresses, resolve(at, {.passive = true}));
  std::optional<Error> first;
  for (const SocketAddress& address : addresses) {
    auto endpoint = bound(address);
    if (endpoint.has_value()) return std::unique_ptr<RdmaListener>(new VerbsListener(std::move(*endpoint)));
    if (!first) first = endpoint.error();
  }
  return *first;
}

}  // namespace

}  // namespace verbs

Result<std::unique_ptr<RdmaFabric>> make_rdma_fabric() {
  return std::unique_ptr<RdmaFabric>(std::make_unique<verbs::VerbsFabric>());
}

}  // namespace migrationd::transports
