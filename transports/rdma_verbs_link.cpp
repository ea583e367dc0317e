// SPDX-License-Identifier: Apache-2.0
#include "transports/rdma_verbs_link.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>

namespace migrationd::transports::verbs {

namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// docs/spec/rdma.md 3.2. What the connecting side says of retries holds for both.
constexpr std::uint8_t reads_in_flight = 2;  // we use none; as QEMU asks
constexpr std::uint8_t retries = 5;
// Messages that are posted while all of rdma_send_depth is outstanding still find room.
constexpr std::uint32_t message_reserve = 16;
constexpr int completion_entries = 1536;
// Until the peer's adapter has heard that we leave.
constexpr milliseconds farewell{1000};
// A device that says ENOMEM while nothing of ours is outstanding has its reasons elsewhere: it gets a tenth of a
// second.
constexpr int full_retries = 100;
constexpr milliseconds full_pause{1};

void more(std::atomic<std::uint64_t>& counter, std::uint64_t by = 1) noexcept {
  counter.fetch_add(by, std::memory_order_relaxed);
}

Error verbs_error(std::string_view what, int err = errno) {
  return Error::from_errno(fmt::format("RDMA ERROR: {}", what), err);
}

bool make_nonblocking(int fd) noexcept {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

std::string_view hint_for(ibv_wc_status status) noexcept {
  if (status == IBV_WC_RETRY_EXC_ERR) return "; the peer's host does not answer";
  if (status == IBV_WC_RNR_RETRY_EXC_ERR) return "; the peer had posted no receive";
  if (status == IBV_WC_REM_ACCESS_ERR) return "; the peer did not open that memory to us";
  return "";
}

std::string_view name_of_request(RdmaRequest request) noexcept {
  switch (request) {
    case RdmaRequest::send:
      return "a message";
    case RdmaRequest::receive:
      return "a receive";
    case RdmaRequest::write:
      break;
  }
  return "a write";
}

}  // namespace

// --- making ------------------------------------------------------------------------------------------------------

VerbsLink::VerbsLink(std::shared_ptr<Endpoint> endpoint, Side side, std::string described, const PrivateData& asked,
                     std::shared_ptr<VerbsDomain> domain)
    : endpoint_(std::move(endpoint)), domain_(std::move(domain)), side_(side), described_(std::move(described)) {
  keep_private_data(asked);
  domain_->attach(counters_);
}

Result<std::unique_ptr<VerbsLink>> VerbsLink::make(std::shared_ptr<Endpoint> endpoint, Side side, std::string described,
                                                   const PrivateData& asked, std::shared_ptr<RdmaDomain> domain) {
  // Domains come from our own links: there is one fabric in a process.
  auto ours = std::static_pointer_cast<VerbsDomain>(std::move(domain));
  if (ours == nullptr) {
    MD_TRY(ours, VerbsDomain::make(endpoint));
  }
  if (ours->device() != endpoint->id->verbs)
    return Error(ErrorKind::io, "RDMA ERROR: two connections of one migration go by different devices");
  std::unique_ptr<VerbsLink> link(
      new VerbsLink(std::move(endpoint), side, std::move(described), asked, std::move(ours)));
  MD_CHECK(link->make_queues());
  MD_CHECK(link->make_wakes());
  return link;
}

Result<void> VerbsLink::make_queues() {
  ibv_context* device = domain_->device();
  channel_.reset(ibv_create_comp_channel(device));
  if (channel_ == nullptr || !make_nonblocking(channel_->fd)) return verbs_error("failed to create completion channel");
  send_queue_.reset(ibv_create_cq(device, completion_entries, nullptr, channel_.get(), 0));
  if (send_queue_ == nullptr) return verbs_error("failed to create completion queue");
  receive_queue_.reset(ibv_create_cq(device, completion_entries, nullptr, channel_.get(), 0));
  if (receive_queue_ == nullptr) return verbs_error("failed to create completion queue");

  ibv_qp_init_attr wanted{};
  wanted.send_cq = send_queue_.get();
  wanted.recv_cq = receive_queue_.get();
  wanted.qp_type = IBV_QPT_RC;
  wanted.cap.max_send_wr = rdma_send_depth + message_reserve;
  wanted.cap.max_recv_wr = rdma_receive_depth;
  wanted.cap.max_send_sge = 1;
  wanted.cap.max_recv_sge = 1;
  if (rdma_create_qp(endpoint_->id.get(), domain_->get(), &wanted) != 0)
    return verbs_error("failed to create queue pair");
  pair_.reset(endpoint_->id.get());
  return {};
}

Result<void> VerbsLink::make_wakes() {
  ended_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  wakes_.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!ended_ || !wakes_) return verbs_error("descriptors of a connection");
  for (const int fd : {channel_->fd, endpoint_->events->fd, ended_.get()}) {
    epoll_event event{};
    event.events = EPOLLIN;
    if (::epoll_ctl(wakes_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return verbs_error("descriptors of a connection");
  }
  return {};
}

VerbsLink::~VerbsLink() {
  if (state_ == State::fresh && side_ == Side::accepts) reject();
  if (state_ == State::connected) {
    disconnect();
    const auto deadline = steady_clock::now() + farewell;
    while (gone_.empty()) {
      const auto left = std::chrono::ceil<milliseconds>(deadline - steady_clock::now());
      if (left <= milliseconds(0)) break;
      const auto event = next_event(*endpoint_->events, nullptr, left);
      if (!event.has_value() || !*event) break;
      note(**event);
    }
  }
  domain_->detach(counters_);
}

// --- connecting --------------------------------------------------------------------------------------------------

Result<void> VerbsLink::establish(ByteView ours, StopSource& stop, milliseconds limit) {
  rdma_conn_param how{};
  how.private_data = ours.data();
  how.private_data_len = static_cast<std::uint8_t>(std::min(ours.size(), rdma_private_bytes));
  if (side_ == Side::connects) {
    how.initiator_depth = reads_in_flight;
    how.retry_count = retries;
    if (rdma_connect(endpoint_->id.get(), &how) != 0) return verbs_error("connecting to destination!");
  } else {
    how.responder_resources = reads_in_flight;
    if (rdma_accept(endpoint_->id.get(), &how) != 0) return verbs_error("rdma_accept failed");
  }
  return wait_established(stop, limit);
}

Result<void> VerbsLink::wait_established(StopSource& stop, milliseconds limit) {
  const auto deadline = steady_clock::now() + limit;
  while (true) {
    const auto left = std::max(milliseconds(0), std::chrono::ceil<milliseconds>(deadline - steady_clock::now()));
    MD_TRY(const std::optional<CmEvent> event,
           next_event(*endpoint_->events, &stop, limit < milliseconds(0) ? limit : left));
    if (!event) return Error(ErrorKind::peer, "RDMA ERROR: poll cm event timeout");
    if (event->type == RDMA_CM_EVENT_ADDR_CHANGE) continue;
    if (event->type != RDMA_CM_EVENT_ESTABLISHED) return not_established(*event);
    // An accepting side knows the peer's words from the request.
    if (side_ == Side::connects) keep_private_data(event->private_data);
    state_ = State::connected;
    return {};
  }
}

void VerbsLink::keep_private_data(const PrivateData& data) noexcept {
  const auto bytes = data.bytes().first(std::min(data.bytes().size(), theirs_.size()));
  theirs_.fill(std::byte{0});
  std::copy(bytes.begin(), bytes.end(), theirs_.begin());
}

Error VerbsLink::not_established(const CmEvent& event) const {
  const char* what = side_ == Side::connects ? "connecting to destination!" : "the source went while it was accepted";
  return Error(ErrorKind::io, fmt::format("RDMA ERROR: {} ({}: {})", what, described_, name_of(event.type)));
}

void VerbsLink::reject() noexcept {
  if (state_ != State::fresh) return;
  state_ = State::over;
  rdma_reject(endpoint_->id.get(), nullptr, 0);
}

void VerbsLink::disconnect() noexcept {
  if (disconnected_.exchange(true, std::memory_order_acq_rel)) return;
  rdma_disconnect(endpoint_->id.get());
  ::eventfd_write(ended_.get(), 1);
}

// --- requests ----------------------------------------------------------------------------------------------------

Result<void> VerbsLink::post_receive(RdmaLocal into, std::uint64_t id) {
  ibv_sge where{};
  where.addr = reinterpret_cast<std::uintptr_t>(into.address);
  where.length = into.length;
  where.lkey = into.key;
  ibv_recv_wr request{};
  request.wr_id = id;
  request.sg_list = &where;
  request.num_sge = 1;
  ibv_recv_wr* bad = nullptr;
  if (const int err = ibv_post_recv(endpoint_->id->qp, &request, &bad); err != 0)
    return verbs_error("error posting control recv!", err);
  return {};
}

Result<void> VerbsLink::post_send(RdmaLocal from, std::uint64_t id) {
  ibv_sge what{};
  what.addr = reinterpret_cast<std::uintptr_t>(from.address);
  what.length = from.length;
  what.lkey = from.key;
  ibv_send_wr request{};
  request.sg_list = &what;
  request.num_sge = 1;
  request.opcode = IBV_WR_SEND;
  // The queue has room that writes may not take, so a full one is the device's doing, and passes.
  for (int attempt = 0; attempt < full_retries; ++attempt) {
    MD_TRY(const bool posted, post(request, RdmaRequest::send, id, true));
    if (posted) {
      more(counters_.sends);
      more(counters_.sent_bytes, from.length);
      return {};
    }
    std::this_thread::sleep_for(full_pause);
    look();
  }
  return verbs_error("error posting control send", ENOMEM);
}

Result<bool> VerbsLink::post_write(RdmaLocal from, RdmaRemote to, std::uint64_t id, bool signalled) {
  if (outstanding() >= rdma_send_depth) {
    look();
    if (outstanding() >= rdma_send_depth && !broken_) return false;
  }
  ibv_sge what{};
  what.addr = reinterpret_cast<std::uintptr_t>(from.address);
  what.length = from.length;
  what.lkey = from.key;
  ibv_send_wr request{};
  request.sg_list = &what;
  request.num_sge = from.length == 0 ? 0 : 1;
  request.opcode = IBV_WR_RDMA_WRITE;
  request.wr.rdma.remote_addr = to.address;
  request.wr.rdma.rkey = to.key;
  for (int attempt = 0; attempt < full_retries; ++attempt) {
    MD_TRY(const bool posted, post(request, RdmaRequest::write, id, signalled));
    if (posted) {
      more(counters_.writes);
      more(counters_.written_bytes, from.length);
      return true;
    }
    look();
    // A completion will come and make room.
    if (outstanding() > 0) return false;
    std::this_thread::sleep_for(full_pause);
  }
  return verbs_error("rdma migration: post rdma write failed", ENOMEM);
}

// False: the device has no room.
Result<bool> VerbsLink::post(ibv_send_wr& request, RdmaRequest kind, std::uint64_t id, bool signalled) {
  if (broken_) return *broken_;
  request.wr_id = posted_ + 1;
  request.send_flags = signalled ? static_cast<unsigned>(IBV_SEND_SIGNALED) : 0U;
  ibv_send_wr* bad = nullptr;
  const int err = ibv_post_send(endpoint_->id->qp, &request, &bad);
  if (err == ENOMEM) return false;
  if (err != 0) return verbs_error(fmt::format("{} cannot be posted", name_of_request(kind)), err);
  ++posted_;
  if (signalled) signalled_.push_back({posted_, id, kind});
  return true;
}

// --- completions -------------------------------------------------------------------------------------------------

Result<std::span<RdmaCompletion>> VerbsLink::poll(std::span<RdmaCompletion> out) {
  more(counters_.polls);
  if (!has_something()) look();
  if (!has_something() && !asked_) {
    // event_fd() tells of the next one; what came meanwhile would go untold.
    MD_CHECK(ask_for_events());
    look();
  }
  if (waiting_.empty() && broken_) return *broken_;
  const std::size_t number = std::min(out.size(), waiting_.size());
  std::copy_n(waiting_.begin(), number, out.begin());
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(number));
  more(counters_.completions, number);
  return out.first(number);
}

Result<RdmaWake> VerbsLink::wait(StopSource& stop, milliseconds limit) {
  const auto deadline = steady_clock::now() + limit;
  while (true) {
    if (stop.requested()) return cancelled_error();
    look();
    if (has_something()) return RdmaWake::ready;
    if (!gone_.empty() || disconnected_.load(std::memory_order_acquire)) return RdmaWake::disconnected;
    if (!asked_) {
      MD_CHECK(ask_for_events());
      continue;
    }
    const auto left = std::max(milliseconds(0), std::chrono::ceil<milliseconds>(deadline - steady_clock::now()));
    pollfd polled[2] = {{wakes_.get(), POLLIN, 0}, {stop.fd(), POLLIN, 0}};
    const auto longest = std::min<milliseconds>(left, std::chrono::hours(1));
    const int ready = ::poll(polled, 2, limit < milliseconds(0) ? -1 : static_cast<int>(longest.count()));
    if (ready < 0 && errno != EINTR) return verbs_error("poll");
    if (ready == 0 && left <= longest) return RdmaWake::timed_out;
    more(counters_.waits);
    MD_CHECK(take_events());
  }
}

Result<void> VerbsLink::ask_for_events() {
  const int send = ibv_req_notify_cq(send_queue_.get(), 0);
  const int receive = ibv_req_notify_cq(receive_queue_.get(), 0);
  if (send != 0 || receive != 0) return verbs_error("completion events", send != 0 ? send : receive);
  asked_ = true;
  return {};
}

Result<void> VerbsLink::take_events() {
  ibv_cq* queue = nullptr;
  void* context = nullptr;
  while (ibv_get_cq_event(channel_.get(), &queue, &context) == 0) {
    ibv_ack_cq_events(queue, 1);
    asked_ = false;
  }
  while (true) {
    MD_TRY(const std::optional<CmEvent> event, next_event(*endpoint_->events, nullptr, milliseconds(0)));
    if (!event) return {};
    note(*event);
  }
}

void VerbsLink::note(const CmEvent& event) {
  if (!gone_.empty()) return;
  if (event.type == RDMA_CM_EVENT_ADDR_CHANGE || event.type == RDMA_CM_EVENT_ESTABLISHED) return;
  if (event.type == RDMA_CM_EVENT_DISCONNECTED) {
    gone_ = "RDMA ERROR: the peer ended the connection";
  } else {
    gone_ = fmt::format("RDMA ERROR: the connection ended: {}", name_of(event.type));
  }
  disconnect();
}

void VerbsLink::look() {
  drain(*receive_queue_, true);
  drain(*send_queue_, false);
}

void VerbsLink::drain(ibv_cq& queue, bool receives) {
  std::array<ibv_wc, 32> done;
  int number = 0;
  do {
    number = ibv_poll_cq(&queue, static_cast<int>(done.size()), done.data());
    if (number < 0 && !broken_) broken_ = Error(ErrorKind::io, "RDMA ERROR: a completion queue cannot be read");
    for (int i = 0; i < number; ++i) {
      const ibv_wc& one = done[static_cast<std::size_t>(i)];
      if (receives)
        take_receive(one);
      else
        take_request(one);
    }
  } while (number == static_cast<int>(done.size()));
}

void VerbsLink::take_receive(const ibv_wc& done) {
  if (done.status != IBV_WC_SUCCESS) return fail(done, RdmaRequest::receive);
  waiting_.push_back({RdmaRequest::receive, done.wr_id, done.byte_len});
  more(counters_.receives);
  more(counters_.received_bytes, done.byte_len);
}

void VerbsLink::take_request(const ibv_wc& done) {
  // Completions come in order; what is not at the front did not ask for one, and has failed.
  const bool known = !signalled_.empty() && signalled_.front().number == done.wr_id;
  const Posted posted = known ? signalled_.front() : Posted{done.wr_id, 0, RdmaRequest::write};
  if (known) signalled_.pop_front();
  completed_ = std::max(completed_, done.wr_id);
  if (done.status != IBV_WC_SUCCESS) return fail(done, posted.request);
  if (known) waiting_.push_back({posted.request, posted.id, 0});
}

void VerbsLink::fail(const ibv_wc& done, RdmaRequest request) {
  // What was posted comes back flushed when either side ends the connection, or behind the request that broke it.
  if (broken_ || done.status == IBV_WC_WR_FLUSH_ERR) return;
  if (done.status == IBV_WC_RETRY_EXC_ERR || done.status == IBV_WC_RNR_RETRY_EXC_ERR) {
    // A peer that leaves answers nothing that is on its way to it; then it has left, and that is all.
    if (const auto taken = take_events(); !taken) broken_ = taken.error();
    if (broken_ || !gone_.empty()) return;
  }
  broken_ = Error(ErrorKind::io, fmt::format("RDMA ERROR: {} failed ({}): {}{}", name_of_request(request), described_,
                                             ibv_wc_status_str(done.status), hint_for(done.status)));
}

}  // namespace migrationd::transports::verbs
