// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/lifecycle.hpp"

namespace migrationd::migration {

bool Lifecycle::is_end(Status status) noexcept {
  return status == Status::completed || status == Status::failed || status == Status::cancelled;
}

bool Lifecycle::in_progress() const noexcept { return status_ != Status::none && !is_end(status_); }

bool Lifecycle::cancel() noexcept {
  if (!in_progress() || status_ == Status::cancelling) return false;
  status_ = Status::cancelling;
  return true;
}

bool Lifecycle::propose(Status status) noexcept {
  if (!in_progress() || status == status_) return false;
  if (status_ == Status::cancelling && !is_end(status)) return false;
  status_ = status;
  return true;
}

}  // namespace migrationd::migration
