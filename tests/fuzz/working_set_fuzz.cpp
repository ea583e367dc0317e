// SPDX-License-Identifier: Apache-2.0
// The record beside a file that machines are resumed from. What is taken lies within the machine's blocks, and is taken
// again when it was written out.
#include "postcopy/working_set.hpp"

#include <cstdlib>

using namespace migrationd;
using namespace migrationd::postcopy;

namespace {

const std::vector<BlockShape> shapes{{"a", 16, 1}, {"b", 8, 4}};
const FileState file{4096, 1};

void must(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto order = decode_working_set(std::as_bytes(std::span(data, size)), file, shapes);
  if (!order) return 0;
  for (const PageRange& range : *order) {
    must(range.block < shapes.size() && range.run.count > 0);
    must(range.run.first < shapes[range.block].pages);
    must(range.run.count <= shapes[range.block].pages - range.run.first);
  }
  const auto again = decode_working_set(encode_working_set(file, shapes, *order), file, shapes);
  must(again.has_value() && *again == *order);
  std::uint64_t pages = 0;
  for (const PageRange& range : join_working_sets(shapes, *order, *order)) pages += range.run.count;
  must(pages <= 24);
  return 0;
}
