// SPDX-License-Identifier: Apache-2.0
//
// OriginMemory: pages that lie in guest memory. Nothing is copied; holes are asked from the file, for reading one
// allocates it.
#pragma once

#include "ram/page_origin.hpp"
#include "ram/ram_map.hpp"

namespace migrationd::ram {

class OriginMemory final : public PageOrigin {
 public:
  // The map outlives it. Nobody writes the memory or gives pages back meanwhile.
  explicit OriginMemory(const RamMap& map) noexcept : map_(map) {}

  Result<std::unique_ptr<PageReader>> open_reader() override;

 private:
  const RamMap& map_;
};

}  // namespace migrationd::ram
