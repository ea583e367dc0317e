// SPDX-License-Identifier: Apache-2.0
// Header and configuration. What is taken is encoded and decoded again to the same values (the order of subsections
// may differ).
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/header.hpp"

#include <cstdlib>

using namespace migrationd;
using namespace migrationd::stream;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ByteView all = std::as_bytes(std::span(data, size));
  const auto header = decode_header(all);
  const ByteView rest = header.is_ready() ? all.subspan(header.consumed()) : all;
  const auto configuration = decode_configuration(rest);
  if (configuration.needs_more() && configuration.needed() <= rest.size()) std::abort();
  if (!configuration.is_ready()) return 0;
  ByteWriter out;
  encode_configuration(out, configuration.value());
  out.u8(0);
  const auto again = decode_configuration(out.view());
  if (!again.is_ready() || !(again.value() == configuration.value())) std::abort();
  ConfigurationExpectations local;
  local.machine_name = "pc-i440fx-7.2";
  (void)check_configuration(configuration.value(), local);
  return 0;
}
