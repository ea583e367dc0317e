// SPDX-License-Identifier: Apache-2.0
//
// HostPageAssembler: collects the records of one host page until it can be placed as a whole.
//
// A guest that runs must never see half of a page, so a block backed by 2 MiB pages gets them whole. The source sends
// all target pages of a host page on one channel, one behind the other (docs/spec/postcopy.md section 9.2); a record
// for another host page before that is an error, and so is one page of it twice. With small pages every record is
// whole by itself, and its bytes are not copied.
//
// Memory: one host page, once a block needs it. Thread: its channel's; one assembler per channel.
#pragma once

#include "base/bitmap.hpp"
#include "base/result.hpp"
#include "postcopy/block_shape.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

namespace migrationd::postcopy {

class HostPageAssembler {
 public:
  // The shapes outlive it; their host pages are what is placed.
  explicit HostPageAssembler(const std::vector<BlockShape>& blocks) noexcept : blocks_(blocks) {}

  struct Whole {
    std::size_t block = 0;
    std::uint64_t page = 0;            // first target page
    const std::byte* bytes = nullptr;  // of the host page, until the next take(); null: all zero
  };
  // A target page inside its block; `bytes` null: zero. Returns the host page that it completes, if it does.
  Result<std::optional<Whole>> take(std::size_t block, std::uint64_t page, const std::byte* bytes);
  // A host page is begun and not whole.
  bool partial() const noexcept { return block_.has_value(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const noexcept { std::free(memory); }
  };
  Error out_of_turn(std::size_t block, std::uint64_t page) const;
  Result<void> begin(std::size_t block, std::uint64_t first);

  const std::vector<BlockShape>& blocks_;
  std::unique_ptr<std::byte, Free> buffer_;
  std::uint64_t buffer_pages_ = 0;
  std::optional<std::size_t> block_;  // of the host page that is being collected
  std::uint64_t first_ = 0;
  Bitmap seen_;
  std::uint64_t count_ = 0;
  bool zero_ = true;
};

}  // namespace migrationd::postcopy
