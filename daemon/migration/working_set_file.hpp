// SPDX-License-Identifier: Apache-2.0
//
// WorkingSetFile: the record FILE.working-set beside a file that machines are resumed from
// (docs/formats/working-set.md).
//
// It is read if it is a regular file of this user or of root, and no longer than a record can be; no link is followed.
// It is written under another name and renamed, mode 0600, so a reader has a whole one; of several writers the last
// one wins. Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "postcopy/block_shape.hpp"
#include "postcopy/working_set.hpp"

#include <optional>
#include <span>
#include <string>
#include <vector>

namespace migrationd::migration {

class WorkingSetFile {
 public:
  // `file`: the machine's, in the state in which it was opened.
  WorkingSetFile(const std::string& file, const postcopy::FileState& state)
      : path_(file + ".working-set"), state_(state) {}

  const std::string& path() const noexcept { return path_; }

  // Nothing: there is none. Errors say why the one that is there does not count.
  Result<std::optional<std::vector<postcopy::PageRange>>> read(std::span<const postcopy::BlockShape> blocks) const;
  // Errors: ErrorKind::io; nothing is left behind.
  Result<void> write(std::span<const postcopy::BlockShape> blocks, std::span<const postcopy::PageRange> order) const;

 private:
  std::string path_;
  postcopy::FileState state_;
};

}  // namespace migrationd::migration
