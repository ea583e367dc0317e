// SPDX-License-Identifier: Apache-2.0
//
// For tests that run over every combination of some GENERATEs. Under ThreadSanitizer, which makes memory and locks tens
// of times slower, one combination in `step` must do: the ordinary build runs them all, and a race shows in any of
// them.
#pragma once

#include <cstddef>

namespace migrationd {

#ifdef __SANITIZE_THREAD__
inline constexpr bool sampling = true;
#else
inline constexpr bool sampling = false;
#endif

class Combinations {
 public:
  // `step` shares no factor with the sizes of the generators, or some of their values would never come together.
  explicit constexpr Combinations(std::size_t step) noexcept : step_(step) {}
  // True when the combination at hand is to be passed over. Once per run of the test case.
  bool pass_over() noexcept { return sampling && count_++ % step_ != 0; }

 private:
  std::size_t step_;
  std::size_t count_ = 0;
};

}  // namespace migrationd
