// SPDX-License-Identifier: Apache-2.0
//
// One daemon in the place of another, as the service sees it (docs/formats/update.md): a cpr-transfer to a process that
// was started for it, over sockets that are there already. Where there is no machine, the same without a stream.
#include "base/log.hpp"
#include "daemon/migration/cpr_channel.hpp"
#include "daemon/migration/daemon_service.hpp"
#include "daemon/migration/machine_worker.hpp"
#include "daemon/migration/run.hpp"
#include "protocol/stream/return_path.hpp"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <memory>
#include <utility>

namespace migrationd::migration {
namespace {

constexpr const char* main_name = "main";

// A descriptor that is there already, as an address wants it.
class OneDescriptor final : public transports::FdSource {
 public:
  explicit OneDescriptor(UniqueFd fd) noexcept : fd_(std::move(fd)) {}
  Result<UniqueFd> take_named(std::string_view) override {
    if (!fd_) return machine_error("the main channel was taken already");
    return std::move(fd_);
  }
  Result<UniqueFd> open_fdset(std::string_view, int) override {
    return machine_error("there are no descriptor sets here");
  }
  Result<void> check_mapped_fdset(std::string_view, int, bool) override {
    return machine_error("there are no descriptor sets here");
  }

 private:
  UniqueFd fd_;
};

Bytes taken_over_message() {
  ByteWriter out;
  stream::encode_return_message(out, stream::reply::Shut{0});
  return std::move(out).take();
}

Result<void> await_taken_over(int main, const StopSource& stop) {
  const Bytes expected = taken_over_message();
  Bytes got(expected.size());
  std::size_t done = 0;
  while (done < got.size()) {
    std::array<pollfd, 2> waits{pollfd{main, POLLIN, 0}, pollfd{stop.fd(), POLLIN, 0}};
    if (::poll(waits.data(), waits.size(), -1) < 0 && errno != EINTR)
      return Error::from_errno("wait for the new daemon");
    if (stop.requested()) return cancelled_error();
    const ssize_t count = ::recv(main, got.data() + done, got.size() - done, MSG_DONTWAIT);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (count < 0) return Error::from_errno("hear of the new daemon");
    if (count == 0) return Error(ErrorKind::peer, "the new daemon ended before it had taken over");
    done += static_cast<std::size_t>(count);
  }
  if (got != expected) return wire_error("the new daemon said something else than that it has taken over");
  return {};
}

// What hand_over() does without a machine; blocks.
Result<void> hand_over_sockets(const HandOver& to, const StopSource& stop) {
  MD_CHECK(send_descriptors(to.cpr.get(), to.extra, stop));
  MD_CHECK(await_new_process(to.cpr.get(), stop));
  return await_taken_over(to.main.get(), stop);
}

}  // namespace

Result<void> say_taken_over(int main) {
  const Bytes message = taken_over_message();
  if (::send(main, message.data(), message.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(message.size())) return {};
  return Error::from_errno("tell the daemon before");
}

// --- the old daemon ---------------------------------------------------------------------------------------------

Result<std::optional<MachineKind>> DaemonService::check_hand_over() const {
  MD_CHECK(check_idle());
  if (cpr_) return machine_error("The daemon waits for a cpr-transfer: it has nothing that could be handed over");
  if (lost_) return machine_error("The machine is lost: end this daemon and start the new one");
  if (!machine_) return std::optional<MachineKind>{};
  if (run_control_.state() == qmp::RunState::inmigrate) {
    // An empty synthetic machine is made anew.
    if (machine_->kind() == MachineKind::synthetic) return std::optional<MachineKind>{};
    return machine_error("The guest is empty and waits for an incoming migration: update before or after that");
  }
  MD_CHECK(run_control_.check_may_migrate());
  if (machine_->page_origin() != nullptr) {
    return machine_error(
        "The machine's memory is still in the file it was opened from: end this daemon, and open the file with the new "
        "one");
  }
  return std::optional(machine_->kind());
}

Result<void> DaemonService::hand_over(HandOver to) {
  MD_TRY(const auto kind, check_hand_over());
  if (!kind) return hand_over_nothing(std::move(to));
  SourcePlan plan;
  plan.by_descriptors = true;
  plan.stopped_from_start = true;
  plan.to_successor = true;
  plan.return_path = true;
  OneDescriptor main(std::move(to.main));
  CprHandOver cpr;
  cpr.socket = std::move(to.cpr);
  cpr.extra = std::move(to.extra);
  cpr.revoke = std::move(to.revoke);
  MD_CHECK(start_outgoing(
      transports::FdAddress{main_name}, std::move(plan), [&cpr] { return Result<CprHandOver>(std::move(cpr)); }, main));
  run_->done = std::move(to.done);
  return {};
}

Result<void> DaemonService::hand_over_nothing(HandOver to) {
  auto shared = std::make_shared<HandOver>(std::move(to));
  MD_TRY(worker_, Worker::start(*this, [shared](StopSource& stop) -> Worker::Finish {
           auto done = hand_over_sockets(*shared, stop);
           // It may have taken over and not been heard: there are never two.
           if (!done) shared->revoke();
           return [shared, done = std::move(done)] { shared->done(done); };
         }));
  return {};
}

void DaemonService::abandon_hand_over() {
  if (worker_) worker_->request_stop();
  if (run_) [[maybe_unused]]
    const auto ignored = cancel();
}

// --- the new daemon ---------------------------------------------------------------------------------------------

Result<void> DaemonService::take_over(UniqueFd cpr, UniqueFd main, std::vector<cpr::NamedDescriptor> descriptors) {
  const int number = main.get();
  // open_incoming() takes inherited descriptors by their numbers, and owns them from then on.
  options_.inherited_fds.push_back(main.release());
  OneDescriptor none{UniqueFd()};
  MD_CHECK(start_incoming(transports::FdAddress{std::to_string(number)}, true, none, &descriptors));
  // The old daemon may send.
  cpr.reset();
  return {};
}

void DaemonService::inherit(const qmp::Capabilities& capabilities, const qmp::MigrationParameters& parameters,
                            std::string origin) {
  capabilities_ = capabilities;
  replace_parameters(parameters);
  origin_ = std::move(origin);
}

}  // namespace migrationd::migration
