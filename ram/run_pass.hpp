// SPDX-License-Identifier: Apache-2.0
//
// run_pass(): the source's inner loop, scanner to sink, in bounded pieces.
//
// QEMU bounds a PART by time and amount (stream.md 5.3). So does the mover here: it opens a PART, calls run_pass()
// with a bound, closes the PART, then looks at limits, policies and cancellation.
// Thread: the mover.
#pragma once

#include "base/result.hpp"
#include "base/stop.hpp"
#include "ram/page_scanner.hpp"
#include "ram/page_sink.hpp"

#include <chrono>
#include <cstdint>
#include <limits>

namespace migrationd::ram {

struct PartBounds {
  std::chrono::nanoseconds time = std::chrono::milliseconds(50);
  std::uint64_t bytes = std::numeric_limits<std::uint64_t>::max();  // on the wire
};

enum class PassEnd : std::uint8_t {
  swept,  // every page of the pass was sent
  bound,  // a bound was reached; call again to go on
};

// The last batch may pass the bound: by at most PageScanner::batch_pages pages and what pacing adds.
Result<PassEnd> run_pass(PageScanner& scanner, PageSink& sink, const StopSource& stop, PartBounds bounds);

// To the end of the sweep, whatever it takes: the last pass, with the machine stopped.
Result<void> run_whole_pass(PageScanner& scanner, PageSink& sink, const StopSource& stop);

}  // namespace migrationd::ram
