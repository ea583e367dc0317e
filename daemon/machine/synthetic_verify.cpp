// SPDX-License-Identifier: Apache-2.0
#include "daemon/machine/synthetic_verify.hpp"

#include "ram/extents.hpp"

#include <fmt/format.h>

namespace migrationd::synthetic {
namespace {

// Counts the pages that are looked at; the first of each so many asks whether to go on.
class Pace {
 public:
  explicit Pace(const StopSource& stop) noexcept : stop_(stop) {}
  bool stopped() noexcept { return pages_++ % verify_pages_per_look == 0 && stop_.requested(); }

 private:
  const StopSource& stop_;
  std::uint64_t pages_ = 0;
};

Error wrong_page(const ram::RamBlock& block, std::uint64_t page, std::string_view what) {
  return machine_error(
      fmt::format("block '{}' page {} (offset {}): {}", block.name(), page, hex(page * ram::page_size), what));
}

// A hole where the ledger has data: found by walking the holes, only after the count said that one is missing.
Result<void> find_missing(const ram::RamBlock& block, const ram::Extents& extents, const Expected& expected,
                          Pace& pace) {
  for (std::uint64_t at = 0; at < block.length();) {
    MD_TRY(const std::uint64_t data, extents.next_data(at, block.length()));
    for (std::uint64_t page = at / ram::page_size; page < data / ram::page_size; ++page) {
      if (pace.stopped()) return cancelled_error();
      if (const auto generation = expected(page)) {
        return wrong_page(block, page, fmt::format("expected generation {}, found a hole (lost)", *generation));
      }
    }
    MD_TRY(at, extents.next_hole(data, block.length()));
  }
  return machine_error(fmt::format("block '{}': pages changed while they were counted", block.name()));
}

}  // namespace

Result<Proof> prove_block(const ram::RamBlock& block, std::size_t index, std::uint64_t seed, const Expected& expected,
                          std::uint64_t expected_data, const StopSource& stop) {
  MD_TRY(const ram::Extents extents, ram::Extents::of(block));
  Pace pace(stop);
  Proof proof;
  proof.checked_pages = block.pages();
  for (std::uint64_t at = 0; at < block.length();) {
    MD_TRY(const auto extent, extents.next(at, block.length()));
    if (!extent) break;
    for (std::uint64_t offset = extent->start; offset < extent->end(); offset += ram::page_size) {
      if (pace.stopped()) return cancelled_error();
      const std::uint64_t page = offset / ram::page_size;
      const std::byte* const memory = block.engine() + offset;
      const auto generation = expected(page);
      if (!generation) {
        if (page_is_zero(memory)) continue;
        return wrong_page(block, page, "never touched by the guest, but not zero");
      }
      const PageIdentity identity{page_number(index, page), *generation, seed};
      if (!page_is(memory, identity)) return wrong_page(block, page, explain_page(memory, identity));
      ++proof.pages_with_data;
    }
    at = extent->end();
  }
  if (proof.pages_with_data != expected_data) MD_CHECK(find_missing(block, extents, expected, pace));
  return proof;
}

}  // namespace migrationd::synthetic
