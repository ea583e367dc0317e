// SPDX-License-Identifier: Apache-2.0
// The settings that one daemon tells the next: what was taken is told again, and taken as the same.
#include "daemon/update/settings.hpp"

#include <cstdlib>

using namespace migrationd;

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size > update::settings_bytes) return 0;
  const auto settings = update::decode_settings(std::as_bytes(std::span(data, size)));
  if (!settings) return 0;
  const Bytes told = update::encode_settings(*settings);
  const auto again = update::decode_settings(told);
  if (!again || update::encode_settings(*again) != told) std::abort();
  return 0;
}
