// SPDX-License-Identifier: Apache-2.0
//
// VerbsLink: the RdmaLink on libibverbs (transports/rdma_link.hpp says what it promises).
//
//   * One completion queue for each direction, as the peers have it, and one channel that tells of both. They are asked
//     for an event only when a look found nothing, and once for each event that came; wait() and event_fd() rest on
//     that.
//   * poll() hands out what wait() found. Receives come before sends and writes: what the peer said before it went is
//     seen before that it went.
//   * Requests are counted, and a completion completes all before it; that is how one signalled write in sixteen makes
//     room for sixteen.
//   * The peer's disconnection is answered at once. Both sides can then free what they have without waiting for each
//     other.
//   * One failed request breaks the link for good: the queue pair is in its error state, and every later poll() gives
//     the first failure. Requests that come back flushed say nothing, after a failure or after a disconnection.
#pragma once

#include "base/unique_fd.hpp"
#include "transports/rdma_verbs_domain.hpp"

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <optional>
#include <string>

namespace migrationd::transports::verbs {

class VerbsLink final : public RdmaLink {
 public:
  enum class Side : std::uint8_t { connects, accepts };

  // The endpoint is bound to a device (its address is resolved, or it is of a request). Without a domain: one of its
  // own. `described`: for describe(); `asked`: the private data of a request.
  static Result<std::unique_ptr<VerbsLink>> make(std::shared_ptr<Endpoint> endpoint, Side side, std::string described,
                                                 const PrivateData& asked, std::shared_ptr<RdmaDomain> domain);
  ~VerbsLink() override;

  std::shared_ptr<RdmaDomain> domain() const override { return domain_; }
  Result<void> establish(ByteView ours, StopSource& stop, std::chrono::milliseconds limit) override;
  void reject() noexcept override;
  ByteView peer_private_data() const noexcept override { return theirs_; }

  Result<void> post_receive(RdmaLocal into, std::uint64_t id) override;
  Result<void> post_send(RdmaLocal from, std::uint64_t id) override;
  Result<bool> post_write(RdmaLocal from, RdmaRemote to, std::uint64_t id, bool signalled) override;

  Result<std::span<RdmaCompletion>> poll(std::span<RdmaCompletion> out) override;
  Result<RdmaWake> wait(StopSource& stop, std::chrono::milliseconds limit) override;
  int event_fd() const noexcept override { return wakes_.get(); }

  void disconnect() noexcept override;

  const RdmaCounters& counters() const noexcept override { return counters_; }
  std::string describe() const override { return described_; }

 private:
  // A request that asked for its completion.
  struct Posted {
    std::uint64_t number = 0;
    std::uint64_t id = 0;
    RdmaRequest request = RdmaRequest::send;
  };
  enum class State : std::uint8_t { fresh, connected, over };

  VerbsLink(std::shared_ptr<Endpoint> endpoint, Side side, std::string described, const PrivateData& asked,
            std::shared_ptr<VerbsDomain> domain);
  Result<void> make_queues();
  Result<void> make_wakes();
  Result<void> wait_established(StopSource& stop, std::chrono::milliseconds limit);
  void keep_private_data(const PrivateData& data) noexcept;
  Error not_established(const CmEvent& event) const;
  Result<bool> post(ibv_send_wr& request, RdmaRequest kind, std::uint64_t id, bool signalled);
  std::uint64_t outstanding() const noexcept { return posted_ - completed_; }

  // Completion queues into waiting_ and broken_.
  void look();
  void drain(ibv_cq& queue, bool receives);
  void take_receive(const ibv_wc& done);
  void take_request(const ibv_wc& done);
  void fail(const ibv_wc& done, RdmaRequest request);
  bool has_something() const noexcept { return !waiting_.empty() || broken_.has_value(); }
  Result<void> ask_for_events();
  Result<void> take_events();
  void note(const CmEvent& event);

  std::shared_ptr<Endpoint> endpoint_;
  std::shared_ptr<VerbsDomain> domain_;
  Side side_;
  State state_ = State::fresh;
  std::string described_;
  std::array<std::byte, rdma_private_bytes> theirs_{};

  CompletionChannel channel_;
  CompletionQueue send_queue_;
  CompletionQueue receive_queue_;
  QueuePair pair_;
  UniqueFd ended_;  // readable once disconnect() was called here
  UniqueFd wakes_;  // epoll: the channel, the connection manager's events, ended_
  bool asked_ = false;

  std::uint64_t posted_ = 0;               // requests given to the send queue so far
  std::uint64_t completed_ = 0;            // of those, in order
  std::deque<Posted> signalled_;           // those that will be handed out, in order
  std::deque<RdmaCompletion> waiting_;     // found, not handed out
  std::string gone_;                       // why the connection ended, "" while it stands
  std::optional<Error> broken_;            // the first request that failed
  std::atomic<bool> disconnected_{false};  // rdma_disconnect() was called
  RdmaCounters counters_;
};

}  // namespace migrationd::transports::verbs
