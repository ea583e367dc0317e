// SPDX-License-Identifier: Apache-2.0
#include "ram/run_pass.hpp"

namespace migrationd::ram {

Result<PassEnd> run_pass(PageScanner& scanner, PageSink& sink, const StopSource& stop, PartBounds bounds) {
  const auto deadline = std::chrono::steady_clock::now() + bounds.time;
  const std::uint64_t before = sink.bytes_sent();
  while (true) {
    if (stop.requested()) return cancelled_error();
    MD_TRY(const PageBatch* const batch, scanner.next());
    if (batch == nullptr) return PassEnd::swept;
    MD_CHECK(sink.send(*batch));
    if (sink.bytes_sent() - before >= bounds.bytes || std::chrono::steady_clock::now() >= deadline)
      return PassEnd::bound;
  }
}

Result<void> run_whole_pass(PageScanner& scanner, PageSink& sink, const StopSource& stop) {
  while (true) {
    MD_TRY(const PassEnd end, run_pass(scanner, sink, stop, PartBounds{}));
    if (end == PassEnd::swept) return {};
  }
}

}  // namespace migrationd::ram
