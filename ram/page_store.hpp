// SPDX-License-Identifier: Apache-2.0
//
// PageStore: the destination's seam. Where arriving pages go: into plain memory (store_plain), later through a
// guest's userfaultfd.
//
// It takes proved spans only: nothing behind it looks at wire numbers. Errors: ErrorKind::io, when the kernel has no
// page left. Thread: the mover.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "ram/ram_map.hpp"

#include <sys/uio.h>

#include <span>

namespace migrationd::ram {

class PageStore {
 public:
  PageStore() = default;
  PageStore(const PageStore&) = delete;
  PageStore& operator=(const PageStore&) = delete;
  virtual ~PageStore() = default;

  // Contiguous pages of one block: span.length() == page_size * pages.size(), each piece one page. The pieces are the
  // receive buffer's; they are copied before place() returns.
  virtual Result<void> place(const GuestSpan& span, std::span<const iovec> pages) = 0;
  // The span's pages are zero.
  virtual Result<void> place_zero(const GuestSpan& span) = 0;
  // One page's memory, to be changed in place (delta pages). Valid until the next call.
  virtual Result<std::span<std::byte>> page_to_change(const GuestSpan& page) = 0;
};

}  // namespace migrationd::ram
