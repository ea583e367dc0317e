// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a file's memory hold data, found by walking it. One bit per page.
#pragma once

#include "base/bitmap.hpp"
#include "tools/migrationctl/image_walk.hpp"

#include <vector>

namespace migrationd::ctl {

class MemoryMap final : public ImageVisitor {
 public:
  // Per block of WalkedImage::blocks. A page that was sent as 4096 zero bytes counts as data: that is how it is stored.
  const std::vector<Bitmap>& data() const noexcept { return data_; }
  // Records of pages, zero or not, that plain streams hold beyond one per page.
  std::uint64_t repeated() const noexcept { return repeated_; }

  Result<void> blocks_known(const WalkedImage& image) override {
    for (const WalkedBlock& one : image.blocks) {
      data_.emplace_back(one.pages());
      seen_.emplace_back(one.pages());
    }
    return {};
  }
  Result<void> zero_pages(std::size_t block, std::uint64_t first, std::uint64_t count) override {
    data_[block].clear_range(first, count);
    return note(block, first, count);
  }
  Result<void> page(std::size_t block, std::uint64_t page, ByteView) override {
    data_[block].set(page);
    return note(block, page, 1);
  }
  Result<void> encoded_page(std::size_t block, std::uint64_t page, const stream::RamRecord&) override {
    data_[block].set(page);
    return note(block, page, 1);
  }
  Result<void> bitmap(std::size_t block, const Bitmap& bitmap) override {
    data_[block] = bitmap;
    return {};
  }

 private:
  Result<void> note(std::size_t block, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t page = first; page < first + count; ++page) repeated_ += seen_[block].test(page) ? 1 : 0;
    seen_[block].set_range(first, count);
    return {};
  }

  std::vector<Bitmap> data_;
  std::vector<Bitmap> seen_;
  std::uint64_t repeated_ = 0;
};

}  // namespace migrationd::ctl
