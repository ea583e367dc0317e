// SPDX-License-Identifier: Apache-2.0
//
// StoreKept: memory that stays where it is (docs/formats/cpr.md). With cpr-transfer it is here already, by descriptor;
// with x-ignore-shared it lies in a file that has a name. A stream that brings a page for it is wrong: the page would
// be written into memory that somebody else answers for.
//
// What is not kept goes on to another store.
//
// Thread: as the other store's.
#pragma once

#include "ram/page_store.hpp"

#include <memory>
#include <utility>
#include <vector>

namespace migrationd::ram {

class StoreKept final : public PageStore {
 public:
  // All blocks.
  StoreKept() = default;
  // Those of that index.
  StoreKept(std::vector<bool> kept, std::unique_ptr<PageStore> rest) : kept_(std::move(kept)), rest_(std::move(rest)) {}

  Result<void> place(const GuestSpan& span, std::span<const iovec> pages) override {
    return keeps(span) ? refused() : rest_->place(span, pages);
  }
  Result<void> place_zero(const GuestSpan& span) override { return keeps(span) ? refused() : rest_->place_zero(span); }
  bool receive_in_place(const GuestSpan& span) override { return !keeps(span) && rest_->receive_in_place(span); }
  bool allocate_huge(const GuestSpan& span) override { return !keeps(span) && rest_->allocate_huge(span); }
  Result<std::span<std::byte>> page_to_change(const GuestSpan& page) override {
    if (keeps(page)) return refused();
    return rest_->page_to_change(page);
  }
  std::size_t pages_to_guess(const GuestSpan& ahead) override {
    return keeps(ahead) ? 0 : rest_->pages_to_guess(ahead);
  }
  void placed(const GuestSpan& span) override {
    if (!keeps(span)) rest_->placed(span);
  }
  Result<void> finish() override { return rest_ ? rest_->finish() : Result<void>(); }

 private:
  bool keeps(const GuestSpan& span) const noexcept { return !rest_ || kept_[span.block()]; }
  static Error refused() { return wire_error("a page in the stream for memory that stays where it is"); }

  std::vector<bool> kept_;
  std::unique_ptr<PageStore> rest_;
};

}  // namespace migrationd::ram
