// SPDX-License-Identifier: Apache-2.0
#include "vmstate/blockers.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::vmstate {

Result<Blockers::Id> Blockers::add(std::string reason, Modes modes) {
  if (only_migratable_ && modes.has(MigrationMode::normal)) {
    return machine_error(fmt::format("disallowing migration blocker (--only-migratable) for: {}", reason));
  }
  return add_internal(std::move(reason), modes);
}

Result<Blockers::Id> Blockers::add_internal(std::string reason, Modes modes) {
  if (busy_) {
    return machine_error(fmt::format("disallowing migration blocker (migration/snapshot in progress) for: {}", reason));
  }
  const Id id{next_++};
  blockers_.push_back({id, std::move(reason), modes});
  return id;
}

void Blockers::remove(Id id) {
  std::erase_if(blockers_, [id](const Blocker& blocker) { return blocker.id == id; });
}

std::vector<std::string> Blockers::reasons(MigrationMode mode) const {
  std::vector<std::string> out;
  for (const Blocker& blocker : blockers_) {
    if (blocker.modes.has(mode)) out.push_back(blocker.reason);
  }
  return out;
}

Result<void> Blockers::refusal(MigrationMode mode) const {
  const auto newest = std::find_if(blockers_.rbegin(), blockers_.rend(),
                                   [mode](const Blocker& blocker) { return blocker.modes.has(mode); });
  if (newest == blockers_.rend()) return {};
  return machine_error(newest->reason);
}

}  // namespace migrationd::vmstate
