// SPDX-License-Identifier: Apache-2.0
//
// DirtyLog: which pages the guest wrote since they were last asked for.
//
// Order of use per page, which loses no write: fetch and clear the bit (sync), then read the page. A write after
// the clear is reported by the next sync. A page that became a hole meanwhile counts as dirty, and so does new
// data where a hole was. Holes that stayed holes are never reported.
//
// Thread: one at a time, the one that works on the machine: the mover, or the worker that measures a dirty rate while
// no migration runs. The guest runs meanwhile.
#pragma once

#include "base/bitmap.hpp"
#include "base/result.hpp"

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace migrationd::ram {

// One bitmap per block of the RamMap, in its order; bit = target page (page_size).
using DirtyBitmaps = std::vector<Bitmap>;

class DirtyLog {
 public:
  virtual ~DirtyLog() = default;
  // From now on writes are seen. What was written before is not reported: the first pass sends everything.
  virtual Result<void> start() = 0;
  // ORs the pages written since start, or since the last sync, into `into`, and starts over for them.
  // Returns the number of pages reported (bits may have been set already).
  virtual Result<std::uint64_t> sync(DirtyBitmaps& into) = 0;
  // Lifts the protection. Idempotent; never fails the machine.
  virtual void stop() noexcept = 0;
  // "userfaultfd-wp-async", "userfaultfd-wp-sync", "none": for query-machine and logs.
  virtual std::string_view kind() const noexcept = 0;
};

}  // namespace migrationd::ram
