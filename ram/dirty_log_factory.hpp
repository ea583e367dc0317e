// SPDX-License-Identifier: Apache-2.0
//
// Making the dirty log that this kernel can carry.
//
//   wp_async  userfaultfd write protection in asynchronous mode, read by PAGEMAP_SCAN: Linux 6.7 and newer
//   wp_sync   userfaultfd write protection with a fault thread of our own: Linux 5.19 and newer (shared memory)
//   automatic the first of these that works here, found by trying it on a page of its own
//
// Privilege: /dev/userfaultfd is opened first, then userfaultfd(2) is called. wp_async may be restricted to user
// mode (the kernel resolves its faults itself, so nothing is lost); wp_sync may not, because a guest's system
// calls into its own memory would fail.
#pragma once

#include "base/result.hpp"
#include "ram/data_tracker.hpp"
#include "ram/dirty_log.hpp"
#include "ram/guest_space.hpp"
#include "ram/ram_map.hpp"

#include <memory>
#include <string>

namespace migrationd::ram {

enum class DirtyLogKind : std::uint8_t { automatic, wp_async, wp_sync };

// The map and the space outlive the log. Errors: ErrorKind::io or ErrorKind::machine, naming what the kernel lacks or
// who may not. What is tried is tried in this process; whether a guest in another one may is its business at start().
Result<std::unique_ptr<DirtyLog>> make_dirty_log(RamMap& map, GuestSpace& space, DirtyLogKind kind,
                                                 BlockChoice blocks = {});

// Whether `kind` works in this process, tried on a page of its own; the error says why not. For doctor and logs.
Result<void> probe_dirty_log(DirtyLogKind kind);

}  // namespace migrationd::ram
