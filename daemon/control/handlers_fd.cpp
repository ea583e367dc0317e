// SPDX-License-Identifier: Apache-2.0
//
// A command that wants a descriptor claims it before anything else can fail: a refusal closes it, as in QEMU. A
// request that is refused earlier (wrong arguments) leaves it pending (qmp.md 7).
#include "daemon/control/handlers.hpp"

namespace migrationd::control {

Result<UniqueFd> Request::claim_fd() {
  if (passed.empty()) return plan_error("No file descriptor supplied via SCM_RIGHTS");
  UniqueFd first = std::move(passed.front());
  passed.clear();
  return first;
}

QmpResult<Empty> FdHandlers::handle(cmd::Getfd, const qmp::FdNameArgs& args, Request& request) {
  auto fd = request.claim_fd();
  if (!fd) return qmp::QmpError(fd.error());
  if (auto named = request.fds.name(args.fdname, std::move(*fd)); !named) return qmp::QmpError(named.error());
  return Empty{};
}

QmpResult<Empty> FdHandlers::handle(cmd::Closefd, const qmp::FdNameArgs& args, Request& request) {
  if (auto closed = request.fds.close_named(args.fdname); !closed) return qmp::QmpError(closed.error());
  return Empty{};
}

QmpResult<qmp::AddFdInfo> FdHandlers::handle(cmd::AddFd, const qmp::AddFdArgs& args, Request& request) {
  auto fd = request.claim_fd();
  if (!fd) return qmp::QmpError(fd.error());
  auto added = state_.fd_sets.add(std::move(*fd), args.fdset_id, args.opaque);
  if (!added) return qmp::QmpError(added.error());
  return qmp::AddFdInfo{added->fdset_id, added->fd};
}

QmpResult<Empty> FdHandlers::handle(cmd::RemoveFd, const qmp::RemoveFdArgs& args, Request&) {
  if (auto removed = state_.fd_sets.remove(args.fdset_id, args.fd); !removed) return qmp::QmpError(removed.error());
  return Empty{};
}

QmpResult<std::vector<qmp::FdsetInfo>> FdHandlers::handle(cmd::QueryFdsets, const Empty&, Request&) {
  std::vector<qmp::FdsetInfo> sets;
  for (const auto& view : state_.fd_sets.list()) {
    auto& set = sets.emplace_back();
    set.fdset_id = view.fdset_id;
    for (const auto* member : view.members) set.fds.push_back({member->fd.get(), member->opaque});
  }
  return sets;
}

}  // namespace migrationd::control
