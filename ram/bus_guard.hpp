// SPDX-License-Identifier: Apache-2.0
//
// BusGuard: memory of others that may not be there when it is touched.
//
// A memfd that another process gave us can fault in spite of its seals: a page punched out of a hugetlb file may be
// taken by somebody else before it is touched again, and memory itself can fail. The kernel says SIGBUS, and by default
// that is the end of the daemon. Inside a guarded range it is not: the handler puts a private page of zeros where the
// fault was, notes the place, and the thread goes on with bytes that mean nothing. So whoever uses guarded memory asks
// broken() before what was read or written counts for anything: a migration does before a machine is handed over or
// taken over. System calls on such memory say EFAULT, which is an error like others.
//
// There is one handler for the process. A SIGBUS outside of all guarded ranges goes to whoever had the signal before,
// and ends the process as it would have.
//
// Thread: watch and the destructor from one thread at a time per range, broken() from any. The memory is not used after
// the destructor began.
#pragma once

#include "base/result.hpp"

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

namespace migrationd::ram {

class BusGuard {
 public:
  // Ranges guarded at a time, of all machines; more is ErrorKind::limit.
  static constexpr std::size_t most_ranges = 2048;

  // [start, start + length), a mapping of pages of `page` bytes.
  static Result<std::unique_ptr<BusGuard>> watch(std::byte* start, std::size_t length, std::size_t page);
  BusGuard(const BusGuard&) = delete;
  BusGuard& operator=(const BusGuard&) = delete;
  ~BusGuard();

  // Offset in the range of the page that first could not be had; nothing: all is well.
  std::optional<std::uint64_t> broken() const noexcept;

 private:
  explicit BusGuard(std::size_t slot) noexcept : slot_(slot) {}
  std::size_t slot_;
};

}  // namespace migrationd::ram
