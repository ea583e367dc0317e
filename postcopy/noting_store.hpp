// SPDX-License-Identifier: Apache-2.0
//
// NotingStore: the precopy phase of a postcopy. Pages go where they always go; that they came is noted, because a later
// recovery reports it and a fault on a page that came as zero must not be asked for.
//
// Thread: the mover.
#pragma once

#include "postcopy/destination_pages.hpp"
#include "ram/page_store.hpp"

namespace migrationd::postcopy {

class NotingStore final : public ram::PageStore {
 public:
  // Both outlive it.
  NotingStore(ram::PageStore& store, DestinationPages& pages) noexcept : store_(store), pages_(pages) {}

  Result<void> place(const ram::GuestSpan& span, std::span<const iovec> pages) override {
    MD_CHECK(store_.place(span, pages));
    note(span);
    return {};
  }
  Result<void> place_zero(const ram::GuestSpan& span) override {
    MD_CHECK(store_.place_zero(span));
    note(span);
    return {};
  }
  bool receive_in_place(const ram::GuestSpan& span) override { return store_.receive_in_place(span); }
  Result<std::span<std::byte>> page_to_change(const ram::GuestSpan& page) override {
    note(page);
    return store_.page_to_change(page);
  }
  std::size_t pages_to_guess(const ram::GuestSpan& ahead) override { return store_.pages_to_guess(ahead); }
  void placed(const ram::GuestSpan& span) override {
    store_.placed(span);
    note(span);
  }
  Result<void> finish() override { return store_.finish(); }

 private:
  void note(const ram::GuestSpan& span) {
    pages_.note_received(span.block(), span.offset() / ram::page_size, span.length() / ram::page_size);
  }

  ram::PageStore& store_;
  DestinationPages& pages_;
};

}  // namespace migrationd::postcopy
