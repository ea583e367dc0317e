// SPDX-License-Identifier: Apache-2.0
//
// PageStore: the destination's seam. Where arriving pages go: into plain memory (store_plain), later through a
// guest's userfaultfd.
//
// It takes proved spans only: nothing behind it looks at wire numbers. Errors: ErrorKind::io, when the kernel has no
// page left. Thread: the mover; with multifd its channels' threads too, each with pages of its own.
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
  // The span's bytes are about to arrive. True: they may be received into its memory (RamMap::memory()) and are
  // announced with placed() when all are there. False: into a buffer, then place().
  virtual bool receive_in_place(const GuestSpan& span) = 0;
  // The span, whole huge pages by offset and length, is about to arrive completely. True: it was a hole, and its memory
  // has been allocated as huge pages, which is a third of the work; receive_in_place() will say so.
  virtual bool allocate_huge(const GuestSpan&) { return false; }
  // One page's memory, to be changed in place (delta pages). Valid until the next call.
  virtual Result<std::span<std::byte>> page_to_change(const GuestSpan& page) = 0;

  // How many pages from the span's start may be filled with bytes that turn out to be something else: pages not
  // received yet, in memory that is there and mapped. 0: none, use place(). They count as received only after placed().
  virtual std::size_t pages_to_guess(const GuestSpan& ahead) = 0;
  // The span lies within what pages_to_guess() or receive_in_place() allowed, and its memory holds the pages' right
  // bytes now.
  virtual void placed(const GuestSpan& span) = 0;

  // The last record was read: what was never received reads as zero from now on.
  virtual Result<void> finish() = 0;
};

}  // namespace migrationd::ram
