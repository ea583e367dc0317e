// SPDX-License-Identifier: Apache-2.0
#include "transports/rdma_verbs_objects.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>

#include <algorithm>
#include <cerrno>

namespace migrationd::transports::verbs {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Opening the channel without it makes librdmacm write to standard error.
constexpr const char* cm_device = "/dev/infiniband/rdma_cm";

CmEvent copied(const rdma_cm_event& event) {
  CmEvent out;
  out.type = event.event;
  out.status = event.status;
  out.id = event.id;
  const auto* data = static_cast<const std::byte*>(event.param.conn.private_data);
  if (data != nullptr) out.private_data = PrivateData(std::span(data, event.param.conn.private_data_len));
  return out;
}

// Nothing when there is none now.
Result<std::optional<CmEvent>> take_event(rdma_event_channel& channel) {
  rdma_cm_event* event = nullptr;
  while (rdma_get_cm_event(&channel, &event) != 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return std::optional<CmEvent>();
    if (errno != EINTR) return Error::from_errno("RDMA ERROR: read an event of the connection manager");
  }
  CmEvent out = copied(*event);
  rdma_ack_cm_event(event);
  return std::optional<CmEvent>(out);
}

int poll_limit(milliseconds limit, steady_clock::time_point deadline) {
  if (limit < milliseconds(0)) return -1;
  const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
  return static_cast<int>(std::clamp(left, milliseconds(0), milliseconds(3'600'000)).count());
}

}  // namespace

PrivateData::PrivateData(std::span<const std::byte> bytes) noexcept : size_(std::min(bytes.size(), max_bytes)) {
  std::copy_n(bytes.begin(), size_, bytes_.begin());
}

std::string_view name_of(rdma_cm_event_type type) noexcept {
  switch (type) {
    case RDMA_CM_EVENT_ADDR_ERROR:
      return "no address";
    case RDMA_CM_EVENT_ROUTE_ERROR:
      return "no route";
    case RDMA_CM_EVENT_CONNECT_ERROR:
      return "connection failed";
    case RDMA_CM_EVENT_UNREACHABLE:
      return "unreachable";
    case RDMA_CM_EVENT_REJECTED:
      return "rejected";
    case RDMA_CM_EVENT_ESTABLISHED:
      return "established";
    case RDMA_CM_EVENT_DISCONNECTED:
      return "disconnected";
    case RDMA_CM_EVENT_DEVICE_REMOVAL:
      return "device removed";
    case RDMA_CM_EVENT_ADDR_RESOLVED:
    case RDMA_CM_EVENT_ROUTE_RESOLVED:
    case RDMA_CM_EVENT_CONNECT_REQUEST:
    case RDMA_CM_EVENT_CONNECT_RESPONSE:
    case RDMA_CM_EVENT_MULTICAST_JOIN:
    case RDMA_CM_EVENT_MULTICAST_ERROR:
    case RDMA_CM_EVENT_ADDR_CHANGE:
    case RDMA_CM_EVENT_TIMEWAIT_EXIT:
      break;
  }
  return rdma_event_str(type);
}

Result<EventChannel> make_event_channel(std::string_view what) {
  if (::access(cm_device, F_OK) != 0)
    return Error(ErrorKind::io,
                 fmt::format("{}: no RDMA in this kernel: {} is not there (module rdma_ucm)", what, cm_device));
  EventChannel channel(rdma_create_event_channel());
  if (channel == nullptr) return Error::from_errno(std::string(what));
  const int flags = ::fcntl(channel->fd, F_GETFL);
  if (flags < 0 || ::fcntl(channel->fd, F_SETFL, flags | O_NONBLOCK) != 0) return Error::from_errno(std::string(what));
  return channel;
}

Result<std::optional<CmEvent>> next_event(rdma_event_channel& channel, const StopSource* stop, milliseconds limit) {
  const auto deadline = steady_clock::now() + limit;
  while (true) {
    if (stop != nullptr && stop->requested()) return cancelled_error();
    MD_TRY(std::optional<CmEvent> event, take_event(channel));
    if (event || limit == milliseconds(0)) return event;
    const int wait = poll_limit(limit, deadline);
    if (wait == 0) return std::optional<CmEvent>();
    pollfd polled[2] = {{channel.fd, POLLIN, 0}, {stop != nullptr ? stop->fd() : -1, POLLIN, 0}};
    if (::poll(polled, 2, wait) < 0 && errno != EINTR) return Error::from_errno("RDMA ERROR: poll cm event");
  }
}

}  // namespace migrationd::transports::verbs
