// SPDX-License-Identifier: Apache-2.0
//
// cpr-transfer as the service sees it (docs/formats/cpr.md): where the descriptors of a machine go to and come from.
//
// The new process listens on the cpr socket from its start. A list of descriptors that has come waits here until the
// main channel is known; then it is listened to, a migration is started, and only then the cpr connection is closed,
// which is the old process's word to connect. A list that is wrong, or a migration that fails, leaves the socket open
// for the next attempt: the old process still has its machine.
#include "base/log.hpp"
#include "daemon/migration/daemon_service.hpp"
#include "daemon/migration/run.hpp"
#include "transports/connect.hpp"

#include <fmt/format.h>

#include <utility>

namespace migrationd::migration {
namespace {

// Who finds a UNIX socket's queue full is refused: probes shall not keep the old process out.
constexpr int cpr_backlog = 16;

}  // namespace

// --- outgoing ---------------------------------------------------------------------------------------------------

Result<CprHandOver> DaemonService::connect_cpr(const transports::Address& address) {
  const auto* local = std::get_if<transports::UnixAddress>(&address);
  if (local == nullptr) return plan_error("bad cpr channel address; must be unix");
  CprHandOver hand_over;
  MD_TRY(hand_over.socket, transports::connect_unix(*local));
  return hand_over;
}

// --- incoming ---------------------------------------------------------------------------------------------------

Result<void> DaemonService::await_cpr(const transports::Address& cpr, std::optional<transports::Address> main,
                                      transports::FdSource& fds) {
  if (!std::holds_alternative<transports::UnixAddress>(cpr)) {
    return plan_error("bad cpr channel socket type; must be unix");
  }
  if (main) MD_CHECK(make_destination_plan(capabilities_, parameters_, *main, true));
  transports::ListenOptions listen;
  listen.backlog = cpr_backlog;
  MD_TRY(auto socket, transports::open_incoming(cpr, fds, listen));
  cpr_ = std::make_unique<CprWait>(std::move(socket));
  cpr_->main = std::move(main);
  cpr_->fds = &fds;
  return listen_for_cpr();
}

Result<void> DaemonService::listen_for_cpr() {
  cpr_->descriptors.reset();
  cpr_->intake.reset();
  MD_TRY(cpr_->intake, CprIntake::start(*cpr_->socket.listener(), *this, post_));
  log::info("waiting for a machine's descriptors at {}", transports::to_string(cpr_->socket.address()));
  return {};
}

void DaemonService::cpr_arrived(std::uint64_t intake, Result<std::vector<cpr::NamedDescriptor>> descriptors) {
  if (!cpr_ || !cpr_->intake || cpr_->intake->number() != intake) return;
  if (!descriptors) return cpr_failed(descriptors.error());
  log::info("{} descriptors came over the cpr channel", descriptors->size());
  cpr_->descriptors = std::move(*descriptors);
  if (!cpr_->main) return;
  if (auto started = start_by_cpr(); !started) {
    cpr_failed(started.error());
    // The old process learns it by the end of the connection, and finds nobody on the main channel.
    rearm_cpr();
  }
}

void DaemonService::cpr_given_up(std::uint64_t intake) {
  if (!cpr_ || !cpr_->intake || cpr_->intake->number() != intake) return;
  log::warning(
      "the old process closed the cpr channel before the main channel was opened: its descriptors are dropped");
  cpr_->descriptors.reset();
}

void DaemonService::cpr_failed(const Error& error) {
  start_status(Direction::incoming);
  fail_at_once(error);
}

Result<void> DaemonService::cpr_main_given(const transports::Address& main, bool exit_on_error,
                                           transports::FdSource& fds) {
  if (cpr_->main) return plan_error("The incoming migration has already been started");
  MD_CHECK(make_destination_plan(capabilities_, parameters_, main, true));
  cpr_->main = main;
  cpr_->main_is_for_once = true;
  cpr_->exit_on_error = exit_on_error;
  cpr_->fds = &fds;
  if (!cpr_->descriptors) return {};
  auto started = start_by_cpr();
  // The descriptors stay for another word.
  if (!started) cpr_->main.reset();
  return started;
}

Result<void> DaemonService::start_by_cpr() {
  MD_CHECK(start_incoming(*cpr_->main, cpr_->exit_on_error, *cpr_->fds, &*cpr_->descriptors));
  cpr_->descriptors.reset();
  if (cpr_->main_is_for_once) cpr_->main.reset();
  // We listen: the old process may connect.
  cpr_->intake.reset();
  return {};
}

void DaemonService::rearm_cpr() {
  if (auto listening = listen_for_cpr(); !listening) {
    log::error("cpr channel: {}", listening.error().text());
    cpr_.reset();
  }
}

}  // namespace migrationd::migration
